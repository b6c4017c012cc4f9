"""Strides of example values after a rewriting that keeps every value but not where its elements lie."""

import operator
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from partitioner.graph.writing import write_viewable

_ATEN = torch.ops.aten


def have_same_strides(one: Any, other: Any) -> bool:
    """Returns whether the tensors of two example values, which have the same structure, lie in memory alike."""
    return all(
        a.stride() == b.stride()
        for a, b in zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
        if isinstance(a, torch.Tensor)
    )


def follow_strides(graph: Graph, moved: set[Node]) -> None:
    """Corrects, in place, what depends on the strides of values that were replaced by equal ones.

    An element-wise operation keeps the strides of a permuted operand, and a view of its result may be one only because
    of that. Where it no longer is, a copy is put in front of it.

    Args:
        graph: A graph in functional form.
        moved: Nodes whose strides are not those of the values that they replace. What follows is added.
    """
    for node in graph.nodes:
        follows = isinstance(node.target, torch._ops.OpOverload) or node.target is operator.getitem
        if not follows or moved.isdisjoint(node.all_input_nodes):
            continue
        if node.target == _ATEN.view.default:
            with graph.inserting_before(node):
                node.update_arg(0, write_viewable(node, *node.args))
        arguments, keywords = map_arg((node.args, node.kwargs), lambda value: value.meta["val"])
        value = node.target(*arguments, **keywords)
        if not have_same_strides(node.meta["val"], value):
            node.meta["val"] = value
            moved.add(node)
