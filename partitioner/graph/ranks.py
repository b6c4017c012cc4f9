"""Refusals of values that have more dimensions than Core ML supports.

Only one pattern with such values converts: a reshape to a high rank, a permutation, and a reshape back, as in window
attention. Core ML Tools rewrites this pattern as a chain of low rank. Quantizations in between move in front of it.
"""

from collections.abc import Mapping

import torch
from torch.fx import Node

from partitioner.graph.nodes import op_name, tensor_of
from partitioner.limits import HIGHEST_RANK
from partitioner.refusals import Kind, Refusal

_RESHAPES = frozenset({"aten.view.default", "aten.view_copy.default", "aten.reshape.default"})
_BETWEEN = frozenset(
    {
        "aten.permute.default",
        "aten.permute_copy.default",
        "aten.transpose.int",
        "aten.transpose_copy.int",
        "aten.clone.default",
        "dim_order_ops._clone_dim_order.default",
        "quantized_decomposed.quantize_per_tensor.default",
        "quantized_decomposed.dequantize_per_tensor.default",
    }
)


def is_high(value: Node) -> bool:
    """Returns whether a value has more dimensions than Core ML supports."""
    tensor = tensor_of(value)
    return tensor is not None and tensor.dim() > HIGHEST_RANK


def exceeds_ranks(node: Node, constants: frozenset[str]) -> bool:
    """Returns whether an operation reads or returns a value of too high rank, and is not in the pattern that converts.

    Args:
        node: A ``call_function`` node.
        constants: Names of constant values; these are folded at any rank.
    """
    return op_name(node) not in _RESHAPES | _BETWEEN and any(_high_values(node, constants))


def _high_values(node: Node, constants: frozenset[str]) -> list[Node]:
    return [value for value in (node, *node.all_input_nodes) if is_high(value) and value.name not in constants]


def rank_refusal(node: Node, decisions: Mapping[Node, Refusal | None], constants: frozenset[str]) -> Refusal | None:
    """Returns the reason to refuse an operation because of the rank of an input or of its result, or None.

    Args:
        node: A ``call_function`` node.
        decisions: Every ``call_function`` node -> the reason why Core ML does not take it, or None.
        constants: Names of constant values; these are folded at any rank.
    """
    for value in _high_values(node, constants):
        rank = tensor_of(value).dim()  # type: ignore[union-attr]
        if exceeds_ranks(node, constants) or not _is_static(value):
            return Refusal(Kind.RANK, f"it needs a tensor of rank {rank}; Core ML has ranks up to {HIGHEST_RANK}")
        if decisions.get(value, "outside") is not None:
            return Refusal(
                Kind.RANK,
                f"it shares {value.name!r}, of rank {rank}, with what is outside Core ML, which has no such rank",
            )
        outside = [user.name for user in value.users if decisions.get(user, "outside") is not None]
        if outside:
            return Refusal(
                Kind.RANK, f"{value.name!r}, of rank {rank}, is needed outside Core ML, which has no such rank"
            )
    return None


def _is_static(value: Node) -> bool:
    tensor = tensor_of(value)
    return tensor is not None and not any(isinstance(size, torch.SymInt) for size in tensor.shape)
