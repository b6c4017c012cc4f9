"""Masking constants: numbers such as ``torch.finfo(torch.float32).min`` that mean "never attend here".

In float16 they would become infinite. Then zero times infinity is NaN, and so is the softmax of a row in which
everything is masked. So they are clamped to a magnitude that a softmax treats like minus infinity. The magnitude leaves
room for the sum of two masks and the scores.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from partitioner.limits import LARGEST_HALF

CLAMPED = 3e4
_CERTAIN = 1e8
"""From this magnitude on, a factor counts as a mask, not as a scale."""

_CARRIERS = frozenset(
    {
        *(
            "add",
            "sub",
            "mul",
            "select",
            "maximum",
            "minimum",
            "fill",
            "fill_like",
            "identity",
            "cast",
            "concat",
            "tile",
        ),
        *(
            "reshape",
            "transpose",
            "expand_dims",
            "squeeze",
            "slice_by_index",
            "slice_by_size",
            "split",
            "stack",
            "gather",
        ),
        *("band_part", "gather_along_axis", "scatter", "scatter_nd", "scatter_along_axis", "pad", "reverse"),
    }
)
_SINKS = frozenset(
    {
        *("softmax", "scaled_dot_product_attention", "reduce_max", "reduce_argmax", "topk", "exp", "sigmoid"),
        *("reduce_log_sum_exp",),
    }
)


def masking_constants(block: Any) -> Iterator[Any]:
    """Yields constants beyond float16 that do nothing but mask the input of a softmax, a maximum or a sigmoid."""
    for operation in block.operations:
        if operation.op_type == "const" and exceeds_half(operation.outputs[0].val) and _only_masks(operation, block):
            yield operation


def exceeds_half(value: Any) -> bool:
    """Returns whether a float32 constant holds finite numbers beyond the range of float16."""
    if not isinstance(value, (np.ndarray, np.floating)) or value.dtype != np.float32:
        return False
    values = np.abs(value)
    return bool(np.any((values > LARGEST_HALF) & np.isfinite(values)))


def clamp(operation: Any, block: Any, mb: Any) -> None:
    """Replaces a masking constant by a clamped one. Infinities stay."""
    old = operation.outputs[0]
    value = np.asarray(old.val)
    clamped = np.where(np.isfinite(value), np.clip(value, -CLAMPED, CLAMPED), value).astype(np.float32)
    new = mb.const(val=clamped if value.ndim else clamped[()], name=f"{old.name}_clamped", before_op=operation)
    block.replace_uses_of_var_after_op(anchor_op=operation, old_var=old, new_var=new)


def _only_masks(constant: Any, block: Any) -> bool:
    largest = float(np.max(np.abs(constant.outputs[0].val)))
    pending, seen = list(constant.outputs), set()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in block.outputs or not value.child_ops:
            return False
        for user in value.child_ops:
            if user.op_type in _SINKS:
                continue
            if user.op_type not in _CARRIERS or (user.op_type == "mul" and largest < _CERTAIN):
                return False
            pending.extend(user.outputs)
    return True
