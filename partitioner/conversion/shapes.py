"""A check, after each operation of a conversion, that Core ML Tools computed the shape that PyTorch has.

MIL derives shapes by its own rules. Where a converter gives MIL other arguments than PyTorch's, only the shape shows it
before the program runs.
"""

from collections.abc import Iterable
from typing import Any

import torch
from coremltools.converters.mil.frontend.torch import ops as _frontend
from coremltools.converters.mil.mil import Var

_convert = _frontend.convert_single_node


def replacements() -> list[tuple[Any, str, Any]]:
    """Returns what a conversion replaces in Core ML Tools: (module, name, replacement)."""
    return [(_frontend, "convert_single_node", convert_and_check)]


def convert_and_check(context: Any, node: Any) -> None:
    """Converts one operation and compares the shapes of its results with those of the exported program.

    Raises:
        ValueError: A shape differs.
    """
    _convert(context, node)
    if node.name not in context:
        return
    value = (getattr(node, "meta", None) or {}).get("val")
    for found, expected in zip(_listed(context[node.name]), _listed(value), strict=False):
        if isinstance(found, Var) and isinstance(expected, torch.Tensor) and _differs(found, expected):
            raise ValueError(
                f"Core ML Tools computes the shape {_shown(found.shape)} where PyTorch has {_shown(expected.shape)}"
            )


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, tuple | list) else (value,)


def _differs(found: Var, expected: torch.Tensor) -> bool:
    """Returns whether two shapes differ in a size that both know."""
    if found.rank < 0:
        return False
    ours, theirs = tuple(found.shape or ()), tuple(expected.shape)
    if len(ours) != len(theirs):
        return True
    known = [(a, b) for a, b in zip(ours, theirs, strict=True) if not hasattr(a, "free_symbols") and isinstance(b, int)]
    return any(int(a) != b for a, b in known)


def _shown(shape: Any) -> str:
    return f"({', '.join(str(size) for size in shape)})"
