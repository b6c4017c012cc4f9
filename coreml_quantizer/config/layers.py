"""What a layer's weights and activations become, as a user writes it: the leaves of `QuantizerConfig`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from coreml_quantizer.config import checks
from coreml_quantizer.config.checks import Check
from coreml_quantizer.config.display import ShortRepr
from coreml_quantizer.config.milestones import milestone_problems
from coreml_quantizer.estimators import ESTIMATORS
from coreml_quantizer.specs import Milestones

WEIGHT_DTYPES = ("int8", "uint8", "int4", "uint4", "lut1", "lut2", "lut3", "lut4", "lut6", "lut8")
"""Integer types, and lookup tables by the bits of an index. Source: Core ML's constexpr operations."""

GRANULARITIES = ("per_tensor", "per_channel", "per_block", "per_channel_group")
SCHEMES = ("symmetric", "affine")
ALGORITHMS = ("vanilla", "learnable")


@dataclass(frozen=True, repr=False)
class EstimatorConfig(ShortRepr):
    """A range estimator by name, with its arguments.

    Attributes:
        name: "min_max", "moving_average", "histogram", "percentile", "entropy", "mse", or "automatic": min_max in
            calibration, and moving_average when activations are trained.
        arguments: What it takes: `momentum` of moving_average, `percentile` of percentile, `steps` and `smallest` of
            mse. A dict or YAML file gives them beside the name.

    Raises:
        ConfigError: There is no such estimator or argument, or a value is outside its interval.
    """

    name: str = "min_max"
    arguments: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.refuse(_named_problems(self.name, self.arguments))
        object.__setattr__(self, "arguments", dict(self.arguments))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any] | str) -> "EstimatorConfig":
        """Reads a name, or a dict of a name and arguments."""
        checks.refuse(_estimator_problems(fields))
        given: dict[str, Any] = {"name": fields} if isinstance(fields, str) else dict(fields)
        return cls(given.pop("name"), given)

    def to_dict(self) -> dict[str, Any]:
        """Returns what `from_dict` reads."""
        return {"name": self.name, **self.arguments}


@dataclass(frozen=True, repr=False)
class WeightConfig(ShortRepr):
    """How weights are stored.

    Attributes:
        dtype: Integer type, or "lutN" for palettization with N-bit indices. int4, uint4, lut3, blocks and channel
            groups need iOS18.
        scheme: "symmetric" fixes the zero point; meaningless for a table.
        granularity: What shares one scale or table: "per_tensor", "per_channel", "per_block" or "per_channel_group".
            Where nothing is said, it follows from `block_size` or `group_size`, and is else "per_channel" for integers
            and "per_tensor" for tables.
        block_size: Inputs in a block; only for "per_block".
        group_size: Channels in a group; only for "per_channel_group".
        estimator: How the range is found; meaningless for a table.

    Raises:
        ConfigError: A value is not allowed, or two of them do not go together.
    """

    dtype: str = "int8"
    scheme: str = "symmetric"
    granularity: str | None = None
    block_size: int | None = None
    group_size: int | None = None
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)

    def __post_init__(self) -> None:
        checks.refuse(_weight_problems(self.to_dict()))
        object.__setattr__(self, "granularity", _granularity(self.to_dict()))
        _name_to_estimator(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "WeightConfig":
        """Reads a dict of the attributes above; what is left out has its default."""
        checks.refuse(_weight_problems(fields))
        return cls(**_with_estimator(fields, "min_max"))

    def to_dict(self) -> dict[str, Any]:
        """Returns what `from_dict` reads."""
        return _to_dict(self)


@dataclass(frozen=True, repr=False)
class ActivationConfig(ShortRepr):
    """How activations are quantized: uint8 per tensor, the only form that Core ML computes with.

    Attributes:
        dtype: "uint8".
        scheme: Under "symmetric" non-negative values still take the affine scheme, as in coremltools.
        estimator: How calibration finds the range.

    Raises:
        ConfigError: A value is not allowed.
    """

    dtype: str = "uint8"
    scheme: str = "affine"
    estimator: EstimatorConfig = field(default_factory=lambda: EstimatorConfig("automatic"))

    def __post_init__(self) -> None:
        checks.refuse(_activation_problems(self.to_dict()))
        _name_to_estimator(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ActivationConfig":
        """Reads a dict of the attributes above; what is left out has its default."""
        checks.refuse(_activation_problems(fields))
        return cls(**_with_estimator(fields, "automatic"))

    def to_dict(self) -> dict[str, Any]:
        """Returns what `from_dict` reads."""
        return _to_dict(self)


@dataclass(frozen=True, repr=False)
class LayerConfig(ShortRepr):
    """What one layer's weights and activations become; None leaves that side in floating point.

    Attributes:
        weight: How weights are stored.
        activation: How inputs and outputs are quantized.
        algorithm: "vanilla", or "learnable" for scales that the loss trains; only training looks at it.
        milestones: Steps at which training turns observers on, rounding on, observers off, and freezes batch-norm
            statistics, -1 for never; None for observing and rounding from the start.

    Raises:
        ConfigError: A value is not allowed.
    """

    weight: WeightConfig | None = field(default_factory=WeightConfig)
    activation: ActivationConfig | None = field(default_factory=ActivationConfig)
    algorithm: str = "vanilla"
    milestones: Milestones | None = None

    def __post_init__(self) -> None:
        checks.refuse(checks.wrong_types(self, {"weight": WeightConfig, "activation": ActivationConfig}))
        checks.refuse(layer_problems({"algorithm": self.algorithm, "milestones": self.milestones}))
        if self.milestones is not None:
            object.__setattr__(self, "milestones", tuple(self.milestones))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "LayerConfig":
        """Reads the attributes, `weight` and `activation` each a dict or None; what is left out has its default."""
        checks.refuse(layer_problems(fields))
        readers: Mapping[str, Callable[[Any], Any]] = {
            "weight": WeightConfig.from_dict,
            "activation": ActivationConfig.from_dict,
            "algorithm": str,
            "milestones": tuple,
        }
        read: dict[str, Any] = {name: None if value is None else readers[name](value) for name, value in fields.items()}
        return cls(**read)

    def to_dict(self) -> dict[str, Any]:
        """Returns what `from_dict` reads."""
        sides = {"weight": self.weight, "activation": self.activation}
        training = {} if self.algorithm == "vanilla" else {"algorithm": self.algorithm}
        if self.milestones is not None:
            training["milestones"] = list(self.milestones)  # type: ignore[assignment]
        return {**{name: None if side is None else side.to_dict() for name, side in sides.items()}, **training}


def layer_problems(fields: Any) -> list[str]:
    """Returns what is wrong with a dict of LayerConfig fields; each line starts with the field."""
    return checks.problems(
        fields,
        {
            "weight": _optional(_weight_problems),
            "activation": _optional(_activation_problems),
            "algorithm": checks.one_of(ALGORITHMS),
            "milestones": _milestone_problems,
        },
    )


def _milestone_problems(given: Any) -> list[str]:
    return [line.removeprefix("milestones") for line in milestone_problems(given)]


_OPTIONAL = ("granularity", "block_size", "group_size")


def _to_dict(config: WeightConfig | ActivationConfig) -> dict[str, Any]:
    fields = {name: value for name, value in vars(config).items() if value is not None or name not in _OPTIONAL}
    estimator = fields["estimator"]
    return {**fields, "estimator": estimator.to_dict() if isinstance(estimator, EstimatorConfig) else estimator}


def _with_estimator(fields: Mapping[str, Any], default: str) -> dict[str, Any]:
    return {**fields, "estimator": EstimatorConfig.from_dict(fields.get("estimator", default))}


def _name_to_estimator(config: WeightConfig | ActivationConfig) -> None:
    given: Any = config.estimator
    if not isinstance(given, EstimatorConfig):
        object.__setattr__(config, "estimator", EstimatorConfig.from_dict(given))


def _optional(check: Check) -> Check:
    return lambda value: [] if value is None else check(value)


def _estimator_problems(given: Any) -> list[str]:
    given = {"name": given} if isinstance(given, str) else given
    if not isinstance(given, Mapping) or "name" not in given:
        return [f"={given!r}: must be the name of an estimator, or a dict of its name and arguments."]
    return _named_problems(given["name"], {k: value for k, value in given.items() if k != "name"})


def _named_problems(name: Any, arguments: Any) -> list[str]:
    found = checks.one_of(tuple(ESTIMATORS))(name)
    if found:
        return [f".name{line}" for line in found]
    if not isinstance(arguments, Mapping):
        return [f".arguments={arguments!r}: must be a dict from the name of an argument to its value."]
    allowed = ESTIMATORS[name].ARGUMENTS
    return checks.problems(arguments, {key: checks.number(argument) for key, argument in allowed.items()})


_WEIGHT_FIELDS: Mapping[str, Check] = MappingProxyType(
    {
        "dtype": checks.one_of(WEIGHT_DTYPES),
        "scheme": checks.one_of(SCHEMES),
        "granularity": _optional(checks.one_of(GRANULARITIES)),
        "block_size": _optional(checks.positive),
        "group_size": _optional(checks.positive),
        "estimator": _estimator_problems,
    }
)
_ACTIVATION_FIELDS: Mapping[str, Check] = MappingProxyType(
    {"dtype": checks.one_of(("uint8",)), "scheme": checks.one_of(SCHEMES), "estimator": _estimator_problems}
)


def _activation_problems(fields: Any) -> list[str]:
    return checks.problems(fields, _ACTIVATION_FIELDS) or _whole_only(fields, "activation")


def _weight_problems(fields: Any) -> list[str]:
    return checks.problems(fields, _WEIGHT_FIELDS) or _combination_problems(fields)


def _combination_problems(fields: Mapping[str, Any]) -> list[str]:
    """What is wrong with values that are each allowed."""
    granularity = _granularity(fields)
    table = _is_table(fields)
    found = []
    for name, needed in (("block_size", "per_block"), ("group_size", "per_channel_group")):
        given = fields.get(name)
        if given is None and granularity == needed:
            found.append(f".granularity={needed!r}: needs {name}.")
        elif given is not None and granularity != needed:
            found.append(f".{name}={given!r}: goes with granularity={needed!r}, and only with it.")
    if table and granularity in ("per_channel", "per_block"):
        found.append(f".granularity={granularity!r}: a lookup table is 'per_tensor' or 'per_channel_group'.")
    if table and fields.get("scheme", "symmetric") != "symmetric":
        found.append(".scheme='affine': a lookup table has no zero point; leave scheme out.")
    if table and _estimator_name(fields) != "min_max":
        found.append(f".estimator={_estimator_name(fields)!r}: tables come from clustering; leave estimator out.")
    return found or ([] if table else _whole_only(fields, granularity))


def _is_table(fields: Mapping[str, Any]) -> bool:
    return str(fields.get("dtype", "int8")).startswith("lut")


def _granularity(fields: Mapping[str, Any]) -> str:
    """The granularity that is given, or that follows from the rest."""
    if fields.get("granularity") is not None:
        return str(fields["granularity"])
    sizes = {"block_size": "per_block", "group_size": "per_channel_group"}
    implied = next((name for size, name in sizes.items() if fields.get(size) is not None), None)
    return implied or ("per_tensor" if _is_table(fields) else "per_channel")


def _whole_only(fields: Mapping[str, Any], granularity: str) -> list[str]:
    """Some estimators know one range for a whole tensor alone."""
    name = _estimator_name(fields)
    if granularity in ("per_tensor", "activation") or ESTIMATORS[name].PER_CHANNEL:
        return []
    able = ", ".join(repr(key) for key, kind in ESTIMATORS.items() if kind.PER_CHANNEL)
    return [f".estimator={name!r}: finds one range for a whole tensor; with granularity={granularity!r} use {able}."]


def _estimator_name(fields: Mapping[str, Any]) -> str:
    estimator = fields.get("estimator", "min_max")
    return estimator if isinstance(estimator, str) else str(estimator["name"])
