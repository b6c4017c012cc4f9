"""Branches and loops."""

from typing import Any

import torch

from partitioner.host.registry import Blocks, Tensors, register_op


@register_op("cond", exact=True)
def cond(pred: torch.Tensor, blocks: Blocks) -> Any:
    """Returns the outputs of the first block where ``pred`` is true, else of the second."""
    results = blocks[0]() if bool(pred) else blocks[1]()
    return results[0] if len(results) == 1 else results


@register_op("while_loop", exact=True)
def while_loop(loop_vars: Tensors, blocks: Blocks) -> Any:
    """Applies the second block to the loop's variables as long as the first block returns true for them."""
    condition, body = blocks
    values: tuple[Any, ...] = loop_vars
    while bool(condition(*values)[0]):
        values = body(*values)
    return values[0] if len(values) == 1 else values
