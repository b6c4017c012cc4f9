"""Refusals of sizes that would pass into or out of a partition: Core ML's models take and return tensors only.

A size is computed where it is used. Where both sides use it, ExecuTorch computes it, and the operations that read it
stay outside too.
"""

from collections.abc import Mapping, Sequence

import torch
from torch.fx import Node

from partitioner.refusals import Kind, Refusal

_SIZES = (torch.SymInt, torch.SymFloat, torch.SymBool)


def is_size(value: Node) -> bool:
    """Returns whether a value is a number that the program computes, and no tensor."""
    return isinstance(value.meta.get("val"), _SIZES)


def exposed_size(node: Node, decisions: Mapping[Node, Refusal | None]) -> Refusal | None:
    """Returns the reason to refuse an operation because of a size that it reads or returns, or None.

    Args:
        node: A ``call_function`` node.
        decisions: Every ``call_function`` node -> the reason why Core ML does not take it, or None.
    """
    if is_size(node) and any(decisions.get(user, "outside") is not None for user in node.users):
        return Refusal(Kind.SIZE, "its result is a size that is needed outside Core ML, which returns tensors only")
    for value in node.all_input_nodes:
        if is_size(value) and decisions.get(value, "outside") is not None:
            reason = f"it reads the size {value.name!r} from outside Core ML, which takes tensors only"
            return Refusal(Kind.SIZE, reason)
    return None


def crossing_sizes(groups: Sequence[Sequence[Node]]) -> dict[Node, Refusal]:
    """Returns refusals of sizes that pass between partitions."""
    home = {node: index for index, group in enumerate(groups) for node in group}
    return {
        value: Refusal(Kind.SIZE, "its result is a size that two partitions need, and Core ML returns tensors only")
        for node, index in home.items()
        for value in node.all_input_nodes
        if is_size(value) and home.get(value, index) != index
    }
