"""Adaptive maximum pools, which neither Core ML nor ExecuTorch has: maxima over a dimension, or over even windows."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from partitioner.graph.nodes import tensor_of
from partitioner.graph.writing import replace_node, write_call

_ATEN = torch.ops.aten

_POOLS: Mapping[Any, Any] = MappingProxyType(
    {
        _ATEN.adaptive_max_pool1d.default: _ATEN.max_pool1d.default,
        _ATEN.adaptive_max_pool2d.default: _ATEN.max_pool2d.default,
        _ATEN.adaptive_max_pool3d.default: _ATEN.max_pool3d.default,
    }
)
"""Adaptive pool -> the pool with windows of a given size."""


def replace_adaptive_pools(program: ExportedProgram) -> None:
    """Replaces, in place, adaptive maximum pools whose windows have one size and whose indices are not read.

    Args:
        program: A program in functional form, before decompositions. Dynamic shapes are left alone.
    """
    changed = False
    for node in list(program.graph.nodes):
        windows = _windows(node) if node.target in _POOLS else None
        if windows is not None:
            for user in list(node.users):
                replace_node(user, _pooled(user, node, windows))
            changed = True
    if changed:
        program.graph.eliminate_dead_code()
        program.graph_module.recompile()


def _windows(node: Node) -> list[int] | None:
    """Returns the size of the windows; None where they differ, or where the indices of the maxima are read."""
    wanted: Sequence[int] = node.args[1]  # type: ignore[assignment]
    source = tensor_of(node.args[0])
    sizes: Sequence[Any] = () if source is None else source.shape[-len(wanted) :]
    if not sizes or any(user.args[1] != 0 for user in node.users):
        return None
    pairs = list(zip(sizes, wanted, strict=True))
    even = all(isinstance(size, int) and size % count == 0 for size, count in pairs)
    return [size // count for size, count in pairs] if even else None


def _pooled(place: Node, node: Node, windows: list[int]) -> Node:
    source: Any = node.args[0]
    with place.graph.inserting_before(place):
        if all(count == 1 for count in node.args[1]):  # type: ignore[union-attr]
            return write_call(place, _ATEN.amax.default, source, list(range(-len(windows), 0)), True)
        return write_call(place, _POOLS[node.target], source, windows, windows)
