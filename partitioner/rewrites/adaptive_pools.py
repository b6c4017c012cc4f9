"""Adaptive pools that neither Core ML nor ExecuTorch has, as reductions over dimensions or pools with even windows."""

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


_AVERAGES: Mapping[Any, Any] = MappingProxyType({_ATEN.adaptive_avg_pool3d.default: _ATEN.avg_pool3d.default})
"""Adaptive average pool -> the pool with windows of a given size. Core ML Tools has the others."""

_WITH_INDICES: Mapping[Any, Any] = MappingProxyType(
    {_ATEN.adaptive_max_pool2d.default: _ATEN.max_pool2d_with_indices.default}
)
"""Adaptive pool -> the pool that also returns the indices of the maxima; ExecuTorch has a kernel for it."""


def replace_adaptive_pools(program: ExportedProgram) -> None:
    """Replaces, in place, adaptive pools whose windows have one size, and whose indices are not read.

    Where the indices of a two-dimensional pool are read, they come from the plain pool with the same windows.

    Args:
        program: A program in functional form, before decompositions. Dynamic shapes are left alone.
    """
    changed = False
    for node in list(program.graph.nodes):
        windows = _windows(node) if node.target in {*_POOLS, *_AVERAGES} else None
        if windows is None:
            continue
        if node.target in _AVERAGES:
            replace_node(node, _averaged(node, windows))
        elif not any(_is_index(user) for user in node.users):
            for user in list(node.users):
                replace_node(user, _pooled(user, node, windows))
        elif node.target in _WITH_INDICES:
            node.target, node.args = _WITH_INDICES[node.target], (node.args[0], windows, windows)
        else:
            continue
        changed = True
    if changed:
        program.graph.eliminate_dead_code()
        program.graph_module.recompile()


def _is_index(user: Node) -> bool:
    return bool(user.args[1]) and bool(user.users)


def _windows(node: Node) -> list[int] | None:
    """Returns the size of the windows; None where they differ or depend on dynamic sizes."""
    wanted: Sequence[int] = node.args[1]  # type: ignore[assignment]
    source = tensor_of(node.args[0])
    sizes: Sequence[Any] = () if source is None else source.shape[-len(wanted) :]
    pairs = list(zip(sizes, wanted, strict=False))
    even = bool(pairs) and all(isinstance(size, int) and size % count == 0 for size, count in pairs)
    return [size // count for size, count in pairs] if even else None


def _averaged(node: Node, windows: list[int]) -> Node:
    source: Any = node.args[0]
    with node.graph.inserting_before(node):
        if all(count == 1 for count in node.args[1]):  # type: ignore[union-attr]
            return write_call(node, _ATEN.mean.dim, source, list(range(-len(windows), 0)), True)
        return write_call(node, _AVERAGES[node.target], source, windows, windows)


def _pooled(user: Node, node: Node, windows: list[int]) -> Node:
    source: Any = node.args[0]
    with user.graph.inserting_before(user):
        if all(count == 1 for count in node.args[1]):  # type: ignore[union-attr]
            return write_call(user, _ATEN.amax.default, source, list(range(-len(windows), 0)), True)
        return write_call(user, _POOLS[node.target], source, windows, windows)
