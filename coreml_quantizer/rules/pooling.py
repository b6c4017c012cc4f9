"""Pools and means: their outputs lie within the range of their inputs."""

import torch
from torch.fx import Node

from coreml_quantizer.rules.registry import OpRule, Treatment

aten = torch.ops.aten

_WHY = "its output lies within the range of its input"
_SOURCE = "coremltools' LinearQuantizer shared-qparams patterns (max, average and adaptive pools, mean)"
_DIVISOR = 6
_OTHERWISE = "with a divisor of its own it leaves the range of its input"


def _averages(node: Node) -> bool:
    """Whether a call of avg_pool divides by the number of elements, and not by its `divisor_override`."""
    return len(node.args) <= _DIVISOR or node.args[_DIVISOR] is None


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
        OpRule(op, Treatment.SHARED, applies=_averages, otherwise=_OTHERWISE, reason=_WHY, source=_SOURCE)
        for op in (aten.avg_pool2d, aten.avg_pool3d)
    ),
    *(
        OpRule(op, Treatment.SPLIT, reason=_WHY, source=_SOURCE)
        for op in (aten.adaptive_max_pool1d, aten.adaptive_max_pool2d, aten.adaptive_max_pool3d)
    ),
)
