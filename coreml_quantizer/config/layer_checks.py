"""Checks of a dict of a layer's fields; each line that they return starts with the field."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from coreml_quantizer.config import checks
from coreml_quantizer.config.checks import Check
from coreml_quantizer.config.milestones import milestone_problems
from coreml_quantizer.estimators import ESTIMATORS

WEIGHT_DTYPES = ("int8", "uint8", "int4", "uint4", "lut1", "lut2", "lut3", "lut4", "lut6", "lut8")
"""Integer types, and lookup tables by the bits of an index. Source: Core ML's constexpr operations."""

GRANULARITIES = ("per_tensor", "per_channel", "per_block", "per_channel_group")
SCHEMES = ("symmetric", "affine")
ALGORITHMS = ("vanilla", "learnable")


def layer_problems(fields: Any) -> list[str]:
    """Checks the fields of a LayerConfig."""
    return checks.problems(
        fields,
        {
            "weight": _optional(weight_problems),
            "activation": _optional(activation_problems),
            "algorithm": checks.one_of(ALGORITHMS),
            "milestones": _milestone_problems,
        },
    )


def _milestone_problems(given: Any) -> list[str]:
    return [line.removeprefix("milestones") for line in milestone_problems(given)]


def _optional(check: Check) -> Check:
    return lambda value: [] if value is None else check(value)


def estimator_problems(given: Any) -> list[str]:
    """Checks an estimator: a name, or a dict of a name and arguments."""
    given = {"name": given} if isinstance(given, str) else given
    if not isinstance(given, Mapping) or "name" not in given:
        return [f"={given!r}: must be the name of an estimator, or a dict of its name and arguments."]
    return named_problems(given["name"], {k: value for k, value in given.items() if k != "name"})


def named_problems(name: Any, arguments: Any) -> list[str]:
    """Checks the name of an estimator and its arguments."""
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
        "estimator": estimator_problems,
    }
)
_ACTIVATION_FIELDS: Mapping[str, Check] = MappingProxyType(
    {"dtype": checks.one_of(("uint8",)), "scheme": checks.one_of(SCHEMES), "estimator": estimator_problems}
)


def activation_problems(fields: Any) -> list[str]:
    """Checks the fields of an ActivationConfig."""
    return checks.problems(fields, _ACTIVATION_FIELDS) or _whole_only(fields, "activation")


def weight_problems(fields: Any) -> list[str]:
    """Checks the fields of a WeightConfig."""
    return checks.problems(fields, _WEIGHT_FIELDS) or _combination_problems(fields)


def _combination_problems(fields: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with a combination of values that are allowed one by one."""
    granularity = granularity_of(fields)
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


def granularity_of(fields: Mapping[str, Any]) -> str:
    """Returns the granularity that is given, or that follows from the rest."""
    if fields.get("granularity") is not None:
        return str(fields["granularity"])
    sizes = {"block_size": "per_block", "group_size": "per_channel_group"}
    implied = next((name for size, name in sizes.items() if fields.get(size) is not None), None)
    return implied or ("per_tensor" if _is_table(fields) else "per_channel")


def _whole_only(fields: Mapping[str, Any], granularity: str) -> list[str]:
    """Returns a problem if the granularity needs several ranges and the estimator only finds one for a whole tensor."""
    name = _estimator_name(fields)
    if granularity in ("per_tensor", "activation") or ESTIMATORS[name].PER_CHANNEL:
        return []
    able = ", ".join(repr(key) for key, kind in ESTIMATORS.items() if kind.PER_CHANNEL)
    return [f".estimator={name!r}: finds one range for a whole tensor; with granularity={granularity!r} use {able}."]


def _estimator_name(fields: Mapping[str, Any]) -> str:
    estimator = fields.get("estimator", "min_max")
    return estimator if isinstance(estimator, str) else str(estimator["name"])
