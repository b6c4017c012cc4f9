"""Checks of a dict before coremltools reads it: every problem is named with its field and the allowed values."""

import difflib
from collections.abc import Iterator, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any

import torch
from coremltools.optimize.torch.quantization import ModuleLinearQuantizerConfig

from coreml_quantizer.config.milestones import milestone_problems

_OBSERVERS = ("moving_average_min_max", "min_max", "ema_min_max")

_MODULE_FIELDS: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "algorithm": ("vanilla", "learnable"),
        "weight_dtype": ("qint8", "quint8", "qint4", "quint4", "float32", torch.qint8, torch.quint8, torch.float32),
        "weight_observer": _OBSERVERS,
        "weight_per_channel": (True, False),
        "activation_dtype": ("quint8", "float32", torch.quint8, torch.float32),
        "activation_observer": _OBSERVERS,
        "quantization_scheme": ("symmetric", "affine"),
        "milestones": (),
    }
)
"""Fields of a ModuleLinearQuantizerConfig -> their allowed values; empty if a function checks the field."""

_TOP_FIELDS = (
    "global_config",
    "module_type_configs",
    "module_name_configs",
    "non_traceable_module_names",
    "preserved_attributes",
)
FIELDS = frozenset({*_TOP_FIELDS, *_MODULE_FIELDS})
"""The names of all fields of a LinearQuantizerConfig and of its modules."""


def problems_of(config: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with a dict of LinearQuantizerConfig fields, one line for each problem."""
    found = list(_unknown("configuration", config, _TOP_FIELDS))
    misplaced = [name for name in config if name in _MODULE_FIELDS]
    if misplaced:
        found.append(f"put {', '.join(misplaced)} under 'global_config', or under a module's name or type.")
    found += _module_problems("global_config", config.get("global_config"))
    for field in ("module_type_configs", "module_name_configs"):
        entries = config.get(field, {})
        if not isinstance(entries, Mapping):
            found.append(f"{field}={entries!r}: must be a dict from a module to its fields or None.")
            continue
        for key, module in entries.items():
            found += _module_problems(f"{field}[{key!r}]", module)
            if field == "module_name_configs" and not isinstance(key, str):
                found.append(f"{field}[{key!r}]: a module's name must be a string.")
    return found


def _module_problems(where: str, module: Any) -> Iterator[str]:
    if module is None or isinstance(module, ModuleLinearQuantizerConfig):
        return
    if not isinstance(module, Mapping):
        yield f"{where}={module!r}: must be a dict of fields, or None to leave it in floating point."
        return
    yield from _unknown(where, module, tuple(_MODULE_FIELDS))
    for name, value in module.items():
        allowed = _MODULE_FIELDS.get(name, ())
        plain = value.value if isinstance(value, Enum) else value
        if allowed and not any(
            plain is choice or (type(plain) is type(choice) and plain == choice) for choice in allowed
        ):
            choices = ", ".join(repr(choice) for choice in allowed)
            yield f"{where}.{name}={value!r}: must be one of {choices}."
    yield from (f"{where}.{problem}" for problem in milestone_problems(module.get("milestones")))


def _unknown(where: str, given: Mapping[str, Any], known: tuple[str, ...]) -> Iterator[str]:
    for name in given:
        if name not in known and name not in _MODULE_FIELDS:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else f" It may have {', '.join(known)}."
            yield f"{where}: there is no field {name!r}.{hint}"
