"""Reads coremltools' `LinearQuantizerConfig` into a `QuantizationPolicy`."""

import warnings
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from coremltools.optimize.torch.quantization import LinearQuantizerConfig

from coreml_quantizer.config.fields import problems_of
from coreml_quantizer.config.keys import function_key, type_key
from coreml_quantizer.config.milestones import milestone_problems
from coreml_quantizer.config.policy import QuantizationPolicy, Scopes
from coreml_quantizer.errors import ConfigError, QuantizerWarning
from coreml_quantizer.specs import (
    INT4,
    INT8,
    UINT4,
    UINT8,
    IntegerStorage,
    OpSpec,
    PerChannel,
    PerTensor,
    RangeEstimator,
    Scheme,
    TensorSpec,
    Training,
)

_STORAGE: Mapping[tuple[torch.dtype, int], IntegerStorage] = MappingProxyType(
    {
        (torch.qint8, 8): INT8,
        (torch.quint8, 8): UINT8,
        (torch.qint8, 4): INT4,
        (torch.quint8, 4): UINT4,
    }
)
"""coremltools' (dtype, bits) to storage; it reads the string "qint4" as torch.qint8 with 4 bits."""

_ESTIMATORS: Mapping[str, RangeEstimator] = MappingProxyType(
    {
        "min_max": RangeEstimator("min_max"),
        "moving_average_min_max": RangeEstimator("moving_average"),
        # coremltools keeps 0.9 of the old value, which is a step of 0.1 towards the new one.
        "ema_min_max": RangeEstimator("moving_average", (("momentum", 0.1),)),
    }
)

_NO_EFFECT = ("non_traceable_module_names", "preserved_attributes")
"""Fields that steer torch.fx tracing: a graph from torch.export is traced already."""


def read_linear_quantizer_config(config: object) -> QuantizationPolicy:
    """Reads and checks a whole `LinearQuantizerConfig`.

    Args:
        config: A `LinearQuantizerConfig`, or a dict that `LinearQuantizerConfig.from_dict` takes.

    Raises:
        ConfigError: Not such a configuration, or fields whose values cannot be honoured; all of them are listed.
    """
    linear = _as_linear_config(config)
    problems = [problem for where, module in _modules(linear) for problem in _problems(where, module)]
    by_type: dict[str, OpSpec | None] = {}
    by_op: dict[str, OpSpec | None] = {}
    for key, module in linear.module_type_configs.items():
        op = function_key(key)
        if op is not None:
            by_op[op] = _op_spec(module)
        else:
            by_type[type_key(key)] = _op_spec(module)
    if problems:
        raise ConfigError("The configuration cannot be honoured:\n  " + "\n  ".join(problems))
    for name in _NO_EFFECT:
        if getattr(linear, name):
            message = f"{name} has no effect on a graph that torch.export made; it is only read by FX tracing."
            warnings.warn(message, QuantizerWarning, stacklevel=4)
    return QuantizationPolicy(
        default=_op_spec(linear.global_config),
        scopes=Scopes(
            by_name={name: _op_spec(module) for name, module in linear.module_name_configs.items()},
            by_type=by_type,
            by_op=by_op,
        ),
        fixes_known_ranges=True,
        fields=("module_name_configs", "", "module_type_configs", "module_type_configs"),
    )


def _as_linear_config(config: object) -> LinearQuantizerConfig:
    if isinstance(config, LinearQuantizerConfig):
        return config
    if isinstance(config, dict):
        problems = problems_of(config)
        if problems:
            raise ConfigError("The dict is not a LinearQuantizerConfig:\n  " + "\n  ".join(problems))
        try:
            return LinearQuantizerConfig.from_dict(config)
        except Exception as error:
            # cattrs raises an exception group whose own message says nothing of the field.
            reasons = "; ".join(str(leaf) for leaf in _leaves(error))
            raise ConfigError(f"The dict is not a LinearQuantizerConfig: {reasons}") from error
    kind = f"{type(config).__module__}.{type(config).__qualname__}"
    raise ConfigError(
        "CoreMLQuantizer takes a QuantizerConfig, a coremltools LinearQuantizerConfig, a dict of the fields of either, "
        f"the name of a preset, or None, not {kind}. "
        "Core ML has static and weight-only quantization, no dynamic quantization: use "
        "LinearQuantizerConfig(global_config=ModuleLinearQuantizerConfig(...)) with activation_dtype=torch.quint8 "
        "(static) or torch.float32 (weight-only)."
    )


def _leaves(error: BaseException) -> Iterator[BaseException]:
    children = getattr(error, "exceptions", None)
    if not children:
        yield error
        return
    for child in children:
        yield from _leaves(child)


def _modules(config: LinearQuantizerConfig) -> Iterator[tuple[str, Any]]:
    yield "global_config", config.global_config
    for key, module in config.module_type_configs.items():
        yield f"module_type_configs[{type_key(key)!r}]", module
    for name, module in config.module_name_configs.items():
        yield f"module_name_configs[{name!r}]", module


def _problems(where: str, module: Any) -> Iterator[str]:
    if module is None:
        return
    yield from (f"{where}.{problem}" for problem in milestone_problems(module.milestones))


def _op_spec(module: Any) -> OpSpec | None:
    if module is None:
        return None
    scheme = Scheme(module.quantization_scheme.value)
    milestones = None if module.milestones is None else tuple(module.milestones)
    training = Training(milestones, learnable=str(module.algorithm) == "learnable")
    activation = None
    if module.activation_dtype != torch.float32:
        estimator = _ESTIMATORS[module.activation_observer.value]
        activation = TensorSpec(UINT8, scheme, PerTensor(), estimator, training)
    weight = None
    if module.weight_dtype != torch.float32:
        storage = _STORAGE[module.weight_dtype, module.weight_n_bits]
        granularity = PerChannel() if module.weight_per_channel else PerTensor()
        # A weight does not change during calibration, so every estimator sees one value: min-max says that.
        weight = TensorSpec(storage, scheme, granularity, RangeEstimator("min_max"), training)
    if activation is None and weight is None:
        return None
    return OpSpec(input=activation, weight=weight, output=activation)
