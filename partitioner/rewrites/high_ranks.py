"""Lower ranks for values that exceed Core ML's highest rank, when one of their dimensions is then split or reduced.

Attention reshapes its projection to (batch, windows, tokens, 3, heads, channels), permutes that, and unbinds queries,
keys and values; a maximum over a window is taken over one of six dimensions. An operation along one dimension gives the
same result however the others are grouped. So it runs on (all before, dimension, all behind), and a
reshape follows.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from partitioner.graph.nodes import ROUNDINGS, tensor_of
from partitioner.graph.ranks import is_high
from partitioner.graph.strides import follow_strides, have_same_strides
from partitioner.graph.writing import replace_node, write_call, write_contiguous, write_viewable
from partitioner.limits import HIGHEST_RANK

_ATEN = torch.ops.aten
_VIEWS = frozenset({_ATEN.view.default, _ATEN.reshape.default})

# Operations along the dimension that their second argument names, which disappears. The result is one tensor, or
# several, all of the same shape.
_ALONG_ONE = frozenset({_ATEN.unbind.int, _ATEN.select.int, _ATEN.max.dim, _ATEN.min.dim})
# The same, where the argument is a list of dimensions.
_ALONG_SEVERAL = frozenset({_ATEN.amax.default, _ATEN.amin.default, _ATEN.sum.dim_IntList, _ATEN.mean.dim})


class _Grouped(NamedTuple):
    """A value of high rank as a reshape of one of low rank, permuted and rounded.

    Attributes:
        source: The value of low rank.
        shape: The shape that it gets.
        order: The order of the dimensions of that shape in the value.
        roundings: Quantizations between the two, each with one scale.
    """

    source: Node
    shape: Sequence[int]
    order: Sequence[int]
    roundings: Sequence[Node]


def lower_ranks(program: ExportedProgram) -> None:
    """Rewrites, in place, operations that split or reduce one dimension of a value of high rank.

    Args:
        program: A program in functional form, before decompositions. Dynamic shapes are left alone.
    """
    graph = program.graph
    changed = False
    moved: set[Node] = set()
    for node in list(graph.nodes):
        if node.op == "call_function" and is_high(node) and node.users:
            dimensions = {user: _dimension(user, node) for user in node.users}
            grouped = _grouped(node)
            if grouped is not None and all(dimension is not None for dimension in dimensions.values()):
                for user, dimension in dimensions.items():
                    moved.update(_rewrite(user, grouped, dimension or 0))
                changed = True
    if changed:
        follow_strides(graph, moved)
        graph.eliminate_dead_code()
        program.graph_module.recompile()


def _dimension(user: Node, value: Node) -> int | None:
    """Returns the dimension that a user splits or reduces; None when it does anything else."""
    rank = tensor_of(value).dim()  # type: ignore[union-attr]
    if user.target not in _ALONG_ONE | _ALONG_SEVERAL or rank - 1 > HIGHEST_RANK or user.args[0] is not value:
        return None
    dims: Any = user.args[1] if len(user.args) > 1 else 0 if user.target == _ATEN.unbind.int else None
    if user.target in _ALONG_SEVERAL:
        dims = dims[0] if dims is not None and len(dims) == 1 else None
    keeps = user.target != _ATEN.select.int and len(user.args) > 2 and user.args[2]
    return None if keeps or dims is None else int(dims) % rank


def _grouped(value: Node) -> _Grouped | None:
    order: list[int] = list(range(tensor_of(value).dim()))  # type: ignore[union-attr]
    view: Any = value
    roundings: list[Node] = []
    while view.target in ROUNDINGS or view.target == _ATEN.permute.default:
        if view.target in ROUNDINGS:
            roundings.insert(0, view)
        else:
            dims: Any = view.args[1]
            order = [dims[position] % len(order) for position in order]
        view = view.args[0]
    result = tensor_of(view)
    if view.target not in _VIEWS or result is None or any(not isinstance(size, int) for size in result.shape):
        return None
    source: Any = view.args[0]
    return None if is_high(source) else _Grouped(source, result.shape, order, roundings)


def _rewrite(user: Node, grouped: _Grouped, dimension: int) -> set[Node]:
    """Rewrites a user of a grouped value. Returns the results that do not have the strides of what they replace."""
    moved: set[Node] = set()
    axis = grouped.order[dimension]
    shape = list(grouped.shape)
    groups = [math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])]
    along = [1] if user.target in _ALONG_SEVERAL else 1
    with user.graph.inserting_before(user):
        source = write_call(user, _ATEN.view.default, write_viewable(user, grouped.source, groups), groups)
        for rounding in grouped.roundings:
            source = write_call(rounding, rounding.target, source, *rounding.args[1:], **rounding.kwargs)
        result = write_call(user, user.target, source, along, *user.args[2:], **user.kwargs)
    rest = [other for other in grouped.order if other != axis]
    left = [size for other, size in enumerate(shape) if other != axis]
    order = [other - (other > axis) for other in rest]
    for reader in list(user.users) if isinstance(user.meta["val"], (tuple, list)) else [user]:
        with user.graph.inserting_before(reader):
            taken = result if reader is user else write_call(reader, reader.target, result, *reader.args[1:])
            shaped = write_call(reader, _ATEN.view.default, taken, left)
            if order != sorted(order):
                shaped = write_call(reader, _ATEN.permute.default, shaped, order)
            shaped = write_contiguous(reader, shaped)  # as most operations leave their results
        if not have_same_strides(reader.meta["val"], shaped.meta["val"]):
            moved.add(shaped)
        replace_node(reader, shaped)
    return moved
