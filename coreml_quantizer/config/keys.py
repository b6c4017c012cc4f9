"""Names of module types and operators: turns those in configurations into those in graphs."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch

_OPERATORS: Mapping[str, str] = MappingProxyType(
    {"truediv": "div", "itruediv": "div", "iadd": "add", "isub": "sub", "imul": "mul", "imatmul": "matmul"}
)
"""Functions of Python's operator module that ATen has under another name."""


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
        key: A name ("aten.add" or "torch.add"), a function such as `torch.add` or `operator.matmul`, or an operator of
            `torch.ops.aten`, with or without its overload.
    """
    return function_key(key) or str(key).rstrip("_")


def function_key(key: object) -> str | None:
    """Returns the ATen name of a function, given itself or by name; None for a class and for any other name."""
    return _aten_name(_look_up(key) if isinstance(key, str) else key)


def same_keys(keys: Iterable[object], name: Callable[[Any], str]) -> Iterator[str]:
    """Yields a line for every key that names the same as an earlier key, so that one of them would be lost."""
    seen: dict[str, object] = {}
    for key in keys:
        first = seen.setdefault(name(key), key)
        if first is not key:
            yield f"[{key!r}]: names the same as {first!r}; keep one of them."


def _aten_name(function: object) -> str | None:
    if isinstance(function, torch._ops.OpOverload):
        function = function.overloadpacket
    if isinstance(function, torch._ops.OpOverloadPacket):
        return str(function).rstrip("_")
    if isinstance(function, type) or not callable(function):
        return None
    called: Callable[..., Any] = function
    name = getattr(called, "__name__", "").strip("_")
    name = _OPERATORS.get(name, name)
    return f"aten.{name}" if name and hasattr(torch.ops.aten, name) else None


def _look_up(name: str) -> object:
    """Returns the object that a dotted name stands for in the modules imported so far; None if there is none."""
    # Graphs print their operators without "torch.ops.".
    name = f"torch.ops.{name}" if name.startswith("aten.") else name
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        found: object = sys.modules.get(".".join(parts[:split]))
        if found is None:
            continue
        for part in parts[split:]:
            found = getattr(found, part, None)
        return found
    return None
