"""The reader of `QuantizerConfig`, which turns it into a `QuantizationPolicy`."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from coreml_quantizer.config.layers import ActivationConfig, EstimatorConfig, LayerConfig, WeightConfig
from coreml_quantizer.config.policy import QuantizationPolicy, Scopes
from coreml_quantizer.config.quantizer import Layers, QuantizerConfig
from coreml_quantizer.specs import (
    INT4,
    INT8,
    UINT4,
    UINT8,
    Granularity,
    LookupTable,
    OpSpec,
    PerBlock,
    PerChannel,
    PerChannelGroup,
    PerTensor,
    RangeEstimator,
    Scheme,
    Storage,
    TensorSpec,
    Training,
)

_STORAGE: Mapping[str, Storage] = MappingProxyType(
    {
        **{storage.name: storage for storage in (INT8, UINT8, INT4, UINT4)},
        **{f"lut{bits}": LookupTable(bits) for bits in (1, 2, 3, 4, 6, 8)},
    }
)


def read_quantizer_config(config: QuantizerConfig) -> QuantizationPolicy:
    """Reads a configuration that was checked when it was made."""
    skip = config.skip
    return QuantizationPolicy(
        default=_op_spec(config.default),
        scopes=Scopes(_specs(config.modules), _specs(config.patterns), _specs(config.types), _specs(config.ops)),
        skip=Scopes(*(dict.fromkeys(keys) for keys in (skip.modules, skip.patterns, skip.types, skip.ops))),
        first_layer=config.first_layer,
        last_layer=config.last_layer,
        quantizes_inputs=config.inputs == "quantized",
        quantizes_outputs=config.outputs == "quantized",
        fixes_known_ranges=config.known_ranges == "fixed",
    )


def _specs(layers: Layers) -> dict[str, OpSpec | None]:
    return {key: _op_spec(layer) for key, layer in layers.items()}


def _op_spec(layer: LayerConfig | None) -> OpSpec | None:
    if layer is None or (layer.weight is None and layer.activation is None):
        return None
    training = Training(layer.milestones, learnable=layer.algorithm == "learnable")
    activation = None if layer.activation is None else replace(_activation_spec(layer.activation), training=training)
    weight = None if layer.weight is None else replace(_weight_spec(layer.weight), training=training)
    return OpSpec(activation, weight, activation)


def _activation_spec(config: ActivationConfig) -> TensorSpec:
    return TensorSpec(_STORAGE[config.dtype], Scheme(config.scheme), PerTensor(), _estimator(config.estimator))


def _weight_spec(config: WeightConfig) -> TensorSpec:
    granularity = _granularity(config)
    return TensorSpec(_STORAGE[config.dtype], Scheme(config.scheme), granularity, _estimator(config.estimator))


def _granularity(config: WeightConfig) -> Granularity:
    if config.block_size is not None:
        return PerBlock(config.block_size)
    if config.group_size is not None:
        return PerChannelGroup(config.group_size)
    table = isinstance(_STORAGE[config.dtype], LookupTable)
    return PerTensor() if config.granularity == "per_tensor" or table else PerChannel()


def _estimator(config: EstimatorConfig) -> RangeEstimator:
    return RangeEstimator(config.name, tuple(sorted(config.arguments.items())))
