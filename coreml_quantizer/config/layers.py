"""Configurations of a layer's weights and activations, as a user writes them: the leaves of `QuantizerConfig`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from coreml_quantizer.config import checks
from coreml_quantizer.config.display import ShortRepr
from coreml_quantizer.config.layer_checks import (
    activation_problems,
    estimator_problems,
    granularity_of,
    layer_problems,
    named_problems,
    weight_problems,
)
from coreml_quantizer.specs import Milestones


@dataclass(frozen=True, repr=False)
class EstimatorConfig(ShortRepr):
    """A range estimator by name, with its arguments.

    Attributes:
        name: "min_max", "moving_average", "histogram", "percentile", "entropy", "mse", or "automatic": min_max in
            calibration, and moving_average when activations are trained.
        arguments: Its arguments by name: `momentum` of moving_average, `percentile` of percentile, `steps` and
            `smallest` of mse. A dict or YAML file has them next to the name.

    Raises:
        ConfigError: There is no such estimator or argument, or a value is outside its interval.
    """

    name: str = "min_max"
    arguments: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.refuse(named_problems(self.name, self.arguments))
        object.__setattr__(self, "arguments", dict(self.arguments))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any] | str) -> "EstimatorConfig":
        """Reads a name, or a dict of a name and arguments."""
        checks.refuse(estimator_problems(fields))
        given: dict[str, Any] = {"name": fields} if isinstance(fields, str) else dict(fields)
        return cls(given.pop("name"), given)

    def to_dict(self) -> dict[str, Any]:
        """Returns a dict that `from_dict` reads."""
        return {"name": self.name, **self.arguments}


@dataclass(frozen=True, repr=False)
class WeightConfig(ShortRepr):
    """The form in which weights are stored.

    Attributes:
        dtype: Integer type, or "lutN" for palettization with N-bit indices. int4, uint4, lut3, blocks and channel
            groups need iOS18.
        scheme: "symmetric" fixes the zero point; meaningless for a table.
        granularity: What shares one scale or table: "per_tensor", "per_channel", "per_block" or "per_channel_group".
            If None, it follows from `block_size` or `group_size`; without these it is "per_channel" for integers and
            "per_tensor" for tables.
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
        checks.refuse(weight_problems(self.to_dict()))
        object.__setattr__(self, "granularity", granularity_of(self.to_dict()))
        _name_to_estimator(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "WeightConfig":
        """Reads a dict of the attributes above; those that are left out have their defaults."""
        checks.refuse(weight_problems(fields))
        return cls(**_with_estimator(fields, "min_max"))

    def to_dict(self) -> dict[str, Any]:
        """Returns a dict that `from_dict` reads."""
        return _to_dict(self)


@dataclass(frozen=True, repr=False)
class ActivationConfig(ShortRepr):
    """The quantization of activations: uint8 per tensor, the only form that Core ML computes with.

    Attributes:
        dtype: "uint8".
        scheme: "symmetric" or "affine". With "symmetric", non-negative values still take the affine scheme, as in
            coremltools.
        estimator: How calibration finds the range.

    Raises:
        ConfigError: A value is not allowed.
    """

    dtype: str = "uint8"
    scheme: str = "affine"
    estimator: EstimatorConfig = field(default_factory=lambda: EstimatorConfig("automatic"))

    def __post_init__(self) -> None:
        checks.refuse(activation_problems(self.to_dict()))
        _name_to_estimator(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ActivationConfig":
        """Reads a dict of the attributes above; those that are left out have their defaults."""
        checks.refuse(activation_problems(fields))
        return cls(**_with_estimator(fields, "automatic"))

    def to_dict(self) -> dict[str, Any]:
        """Returns a dict that `from_dict` reads."""
        return _to_dict(self)


@dataclass(frozen=True, repr=False)
class LayerConfig(ShortRepr):
    """The quantization of one layer's weights and activations; None leaves them in floating point.

    Attributes:
        weight: How weights are stored.
        activation: How inputs and outputs are quantized.
        algorithm: "vanilla", or "learnable" for scales that the loss trains; only training uses it.
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
        """Reads a dict of the attributes above, in which `weight` and `activation` are dicts or None.

        Attributes that are left out have their defaults.
        """
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
        """Returns a dict that `from_dict` reads."""
        sides = {"weight": self.weight, "activation": self.activation}
        training = {} if self.algorithm == "vanilla" else {"algorithm": self.algorithm}
        if self.milestones is not None:
            training["milestones"] = list(self.milestones)  # type: ignore[assignment]
        return {**{name: None if side is None else side.to_dict() for name, side in sides.items()}, **training}


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
