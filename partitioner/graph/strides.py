"""Strides of example values after a rewrite that keeps every value but changes the memory layout."""

import operator
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from partitioner.graph.writing import write_viewable

_ATEN = torch.ops.aten


def have_same_strides(one: Any, other: Any) -> bool:
    """Returns whether the tensors of two example values of the same structure have the same strides."""
    return all(
        a.stride() == b.stride()
        for a, b in zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
        if isinstance(a, torch.Tensor)
    )


def follow_strides(graph: Graph, moved: set[Node]) -> None:
    """Corrects a graph, in place, after some values were replaced by equal ones with other strides.

    An element-wise operation keeps the strides of a permuted operand, and a view of its result may depend on these
    strides. Where the view is no longer possible, a copy is put in front of it. The example values are corrected, too.

    Args:
        graph: A graph in functional form.
        moved: Nodes whose strides differ from those of the values that they replace. Nodes whose strides change as a
            result are added.
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
