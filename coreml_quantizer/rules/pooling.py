"""Rules for pooling operators and reductions."""

import torch
from torch.fx import Node

from coreml_quantizer.rules.registry import OpRule, Treatment

aten = torch.ops.aten

_WHY = "its output lies within the range of its input"
_SOURCE = "coremltools' LinearQuantizer shared-qparams patterns (max, average and adaptive pools, mean)"
_SOURCE_MAX = "as max pools, which coremltools' LinearQuantizer lets share"
_DIVISOR = 6


def _averages(node: Node) -> bool:
    """Returns whether a call of avg_pool divides by the number of elements, and not by its `divisor_override`."""
    return len(node.args) <= _DIVISOR or node.args[_DIVISOR] is None


def _returns_indices(node: Node) -> bool:
    return isinstance(node.meta.get("val"), tuple | list)


RULES = (
    *(
        OpRule(op, Treatment.SHARED, reason=_WHY, source=_SOURCE)
        for op in (
            aten.max_pool1d,
            aten.max_pool2d,
            aten.max_pool3d,
            aten.avg_pool1d,
            aten.adaptive_avg_pool1d,
            aten.adaptive_avg_pool2d,
            aten.adaptive_avg_pool3d,
            aten.mean,
        )
    ),
    *(
        OpRule(
            op,
            Treatment.SHARED,
            applies=_averages,
            otherwise="with a divisor of its own it leaves the range of its input",
            reason=_WHY,
            source=_SOURCE,
        )
        for op in (aten.avg_pool2d, aten.avg_pool3d)
    ),
    *(
        OpRule(op, Treatment.SPLIT, reason=_WHY, source=_SOURCE)
        for op in (
            aten.adaptive_max_pool1d,
            aten.adaptive_max_pool2d,
            aten.adaptive_max_pool3d,
            aten.max_pool1d_with_indices,
            aten.max_pool2d_with_indices,
            aten.max_pool3d_with_indices,
        )
    ),
    *(OpRule(op, Treatment.SHARED, reason=_WHY, source=_SOURCE_MAX) for op in (aten.amax, aten.amin)),
    *(
        OpRule(
            op,
            Treatment.SPLIT,
            applies=_returns_indices,
            otherwise="only the form with a dimension, which returns indices too, is a reduction that layers use",
            reason=_WHY,
            source=_SOURCE_MAX,
        )
        for op in (aten.max, aten.min)
    ),
    OpRule(
        aten.sum,
        Treatment.FLOAT,
        reason="its range grows with the number of elements; a float sum of int8 values costs nothing more",
        source="no pattern of coremltools' LinearQuantizer has it",
    ),
)
