"""The reader of coremltools' `LinearQuantizerConfig`, which turns it into a `QuantizationPolicy`."""

import warnings
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from coremltools.optimize.torch.quantization import LinearQuantizerConfig, ModuleLinearQuantizerConfig

from coreml_quantizer.config.checks import refuse
from coreml_quantizer.config.keys import function_key, same_keys, type_key
from coreml_quantizer.config.linear_checks import problems_of
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

_STORAGE: Mapping[tuple[torch.dtype | str, int], IntegerStorage | None] = MappingProxyType(
    {
        (torch.qint8, 8): INT8,
        (torch.quint8, 8): UINT8,
        (torch.qint8, 4): INT4,
        (torch.quint8, 4): UINT4,
        **{(torch.float32, bits): None for bits in (4, 8, 32)},
    }
)
"""coremltools' (dtype, bits) -> storage; coremltools reads the string "qint4" as torch.qint8 with 4 bits."""

_ESTIMATORS: Mapping[str, RangeEstimator] = MappingProxyType(
    {
        "min_max": RangeEstimator("min_max"),
        "moving_average_min_max": RangeEstimator("moving_average"),
        # coremltools keeps 0.9 of the old value, which is a step of 0.1 towards the new one.
        "ema_min_max": RangeEstimator("moving_average", (("momentum", 0.1),)),
    }
)

_NO_EFFECT = ("non_traceable_module_names", "preserved_attributes")
"""Fields that only control torch.fx tracing; a graph from torch.export is traced already."""

_ALL_FLOAT = (
    "Nothing will be quantized: global_config is None, which leaves all that no entry names in floating point, and so "
    "is every entry. Give global_config={} for the defaults of coremltools."
)


def read_linear_quantizer_config(config: object) -> QuantizationPolicy:
    """Reads and checks a whole `LinearQuantizerConfig`.

    Args:
        config: A `LinearQuantizerConfig`, or a dict that `LinearQuantizerConfig.from_dict` takes.

    Raises:
        ConfigError: It is not such a configuration, or the values of some fields cannot be honoured; the message lists
            all of them.
    """
    linear = _as_linear_config(config)
    problems = [problem for where, module in _modules(linear) for problem in _problems(where, module)]
    refuse([*problems, *_key_problems(linear)])
    by_type: dict[str, OpSpec | None] = {}
    by_op: dict[str, OpSpec | None] = {}
    for key, module in linear.module_type_configs.items():
        op = function_key(key)
        if op is not None:
            by_op[op] = _op_spec(module)
        else:
            by_type[type_key(key)] = _op_spec(module)
    if not any(module is not None for _, module in _modules(linear)):
        warnings.warn(_ALL_FLOAT, QuantizerWarning, stacklevel=4)
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
            return _from_dict(config)
        except Exception as error:
            # cattrs raises an exception group whose own message says nothing of the field.
            reasons = "; ".join(str(leaf) for leaf in _leaves(error))
            raise ConfigError(f"The dict is not a LinearQuantizerConfig: {reasons}") from error
    raise ConfigError(
        "CoreMLQuantizer takes a QuantizerConfig, a coremltools LinearQuantizerConfig, a dict of the fields of either, "
        f"the name of a preset, or None, not {config!r}. "
        "What holds for one layer is the `default` of a QuantizerConfig, or the `global_config` of a "
        "LinearQuantizerConfig. Core ML has static and weight-only quantization, no dynamic quantization."
    )


def _from_dict(config: dict[str, Any]) -> LinearQuantizerConfig:
    """Reads a dict as coremltools' `from_dict` does, but takes objects for modules in every field.

    coremltools takes them only under module_type_configs.
    """

    def read(module: Any) -> Any:
        return ModuleLinearQuantizerConfig.from_dict(module) if isinstance(module, dict) else module

    fields = dict(config)
    for name in ("module_type_configs", "module_name_configs"):
        fields[name] = {key: read(module) for key, module in config.get(name, {}).items()}
    if "global_config" in config:
        fields["global_config"] = read(config["global_config"])
    return LinearQuantizerConfig(**fields)


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
    """Yields what is wrong with one module: coremltools does not check fields that were set after construction."""
    if module is None:
        return
    if not isinstance(module, ModuleLinearQuantizerConfig):
        yield f"{where}={module!r}: must be a ModuleLinearQuantizerConfig or None."
        return
    if (module.weight_dtype, module.weight_n_bits) not in _STORAGE:
        yield (
            f"{where}.weight_dtype={module.weight_dtype!r}: must be given when the ModuleLinearQuantizerConfig is "
            "made, which takes 'qint8', 'quint8', 'qint4', 'quint4', 'float32' and the torch dtypes of those names."
        )
    yield from (f"{where}.{problem}" for problem in milestone_problems(module.milestones))


def _key_problems(config: LinearQuantizerConfig) -> Iterator[str]:
    keys = list(config.module_type_configs)
    unknown = [key for key in keys if not isinstance(key, type | str) and function_key(key) is None]
    for key in unknown:
        yield (
            f"module_type_configs[{key!r}]: is neither a class nor an ATen operator; name one of those that "
            "torch.export makes of it, such as 'aten.add'."
        )
    yield from (
        f"module_type_configs{line}" for line in same_keys(keys, lambda key: function_key(key) or type_key(key))
    )
    for name in config.module_name_configs:
        if not isinstance(name, str):
            yield f"module_name_configs[{name!r}]: must be a string."


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
    storage = _STORAGE[module.weight_dtype, module.weight_n_bits]
    if storage is not None:
        granularity = PerChannel() if module.weight_per_channel else PerTensor()
        # A weight does not change during calibration, so every estimator sees one value: min-max says that.
        weight = TensorSpec(storage, scheme, granularity, RangeEstimator("min_max"), training)
    if activation is None and weight is None:
        return None
    return OpSpec(input=activation, weight=weight, output=activation)
