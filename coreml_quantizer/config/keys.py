"""Names of module types and operators, as configurations may write them and as graphs do."""

import sys
from collections.abc import Callable
from typing import Any

import torch


def type_key(key: object) -> str:
    """Returns the name under which graphs know a module type.

    Args:
        key: A class, its full name ("torch.nn.modules.linear.Linear"), a name that it can be reached by
            ("torch.nn.Linear"), or its bare name ("Linear").
    """
    if isinstance(key, type):
        return f"{key.__module__}.{key.__qualname__}"
    named = _look_up(str(key))
    return type_key(named) if isinstance(named, type) else str(key)


def op_key(key: object) -> str:
    """Returns the ATen name of an operator.

    Args:
        key: A name ("aten.add" or "torch.add"), or a function such as `torch.add` or `operator.matmul`.
    """
    return _aten_name(_look_up(key) if isinstance(key, str) else key) or str(key).rstrip("_")


def function_key(key: object) -> str | None:
    """Returns the ATen name of a function or of the name of one, None for a class and for any other name."""
    return _aten_name(_look_up(key) if isinstance(key, str) else key)


def _aten_name(function: object) -> str | None:
    if isinstance(function, type | torch._ops.OpOverloadPacket) or not callable(function):
        return str(function).rstrip("_") if isinstance(function, torch._ops.OpOverloadPacket) else None
    called: Callable[..., Any] = function
    name = getattr(called, "__name__", "").strip("_")
    return f"aten.{name}" if name and hasattr(torch.ops.aten, name) else None


def _look_up(name: str) -> object:
    """Returns what a dotted name stands for in the modules that are imported already; None when nothing."""
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        found: object = sys.modules.get(".".join(parts[:split]))
        if found is None:
            continue
        for part in parts[split:]:
            found = getattr(found, part, None)
        return found
    return None
