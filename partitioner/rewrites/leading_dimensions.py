"""Lower ranks for values that exceed Core ML's highest rank, where operations use their last dimension only.

Networks that cut an image into windows keep (batch, rows, columns, height, width, channels) apart through norms, linear
layers and activations. These work on each position by itself. So they run on (positions, channels), and of the high
rank remains a reshape in front of a permutation, which converts.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from partitioner.graph.nodes import ROUNDINGS, argument, tensor_of
from partitioner.graph.ranks import is_high
from partitioner.graph.strides import follow_strides, have_same_strides
from partitioner.graph.writing import replace_node, write_call, write_viewable

_ATEN = torch.ops.aten


def _along_last(node: Node) -> bool:
    return int(argument(node, 1, "dim")) in (-1, tensor_of(node).dim() - 1)  # type: ignore[union-attr]


def _of_last(node: Node) -> bool:
    return len(argument(node, 1, "normalized_shape")) == 1


def _always(node: Node) -> bool:
    return True


_LOCAL: Mapping[Any, Callable[[Node], bool]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                *(_ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.div.Tensor, _ATEN.linear.default),
                *(_ATEN.relu.default, _ATEN.gelu.default, _ATEN.silu.default, _ATEN.sigmoid.default),
                *(_ATEN.tanh.default, _ATEN.hardswish.default, _ATEN.hardsigmoid.default, _ATEN.leaky_relu.default),
                *(_ATEN.elu.default, _ATEN.mish.default, _ATEN.softplus.default, _ATEN.clamp.default),
            ),
            _always,
        ),
        **dict.fromkeys((_ATEN.layer_norm.default, _ATEN.rms_norm.default), _of_last),
        **dict.fromkeys((_ATEN.softmax.int, _ATEN._softmax.default, _ATEN.log_softmax.int), _along_last),
    }
)
"""Operator -> whether a call computes each position of the result from that position of the operands alone."""


def merge_leading_dimensions(program: ExportedProgram) -> None:
    """Rewrites, in place, operations that compute each position of a value of high rank by itself.

    Args:
        program: A program in functional form, before decompositions. Dynamic shapes are left alone.
    """
    merged: dict[Node, Node] = {}
    """Value of high rank -> the node with the same elements as (positions, last dimension)."""
    moved: set[Node] = set()
    """Results that do not have the strides of what they replace."""
    for node in list(program.graph.nodes):
        if node.op == "call_function" and is_high(node) and _is_local(node, merged):
            with program.graph.inserting_before(node):
                arguments = [_merged(node, given, merged) for given in node.args]
                flat = write_call(node, node.target, *arguments, **node.kwargs)
                wide = write_call(node, _ATEN.view.default, flat, list(node.meta["val"].shape))
            if not have_same_strides(node.meta["val"], wide.meta["val"]):
                moved.add(wide)
            replace_node(node, wide)
            merged[wide] = flat
    if merged:
        follow_strides(program.graph, moved)
        program.graph.eliminate_dead_code()
        program.graph_module.recompile()


def _is_local(node: Node, merged: Mapping[Node, Node]) -> bool:
    """Returns whether a call gives the same on (positions, last dimension). Quantizations follow their merged input."""
    if node.target in ROUNDINGS:
        return node.args[0] in merged
    is_local = _LOCAL.get(node.target)
    if is_local is None or not is_local(node):
        return False
    places = tensor_of(node).shape[:-1]  # type: ignore[union-attr]
    high = [value for value in node.all_input_nodes if is_high(value)]
    low = [value for value in node.all_input_nodes if not is_high(value)]
    static = all(isinstance(size, int) for value in (node, *high) for size in tensor_of(value).shape)  # type: ignore[union-attr]
    # The weight of a linear layer has two dimensions; of everything else, what is broadcast has the last one only.
    rank = 2 if node.target == _ATEN.linear.default else 1
    return (
        static
        and all(tensor_of(value).shape[:-1] == places for value in high)  # type: ignore[union-attr]
        and all((tensor := tensor_of(value)) is not None and tensor.dim() <= rank for value in low)
    )


def _merged(place: Node, given: Any, merged: dict[Node, Node]) -> Any:
    if not isinstance(given, Node) or not is_high(given):
        return given
    if given not in merged:
        shape = tensor_of(given).shape  # type: ignore[union-attr]
        flat = [math.prod(shape[:-1]), shape[-1]]
        merged[given] = write_call(place, _ATEN.view.default, write_viewable(place, given, flat), flat)
    return merged[given]
