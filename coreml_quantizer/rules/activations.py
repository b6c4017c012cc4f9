"""Rules for activation functions, which fuse into the operator before them."""

import torch
from torch.fx import Node

from coreml_quantizer.rules.registry import (
    SYMMETRIC_UNIT_INTERVAL,
    UNIT_INTERVAL,
    OpRule,
    OutputRange,
    Treatment,
    with_in_place,
)

aten = torch.ops.aten

_WHY = "fuses with the operator before it, which then writes int8 once"
_WHY_FIXED = f"{_WHY}; its range is known, and may be fixed"
_SOURCE = "coremltools' LinearQuantizer activation patterns"
_SOURCE_MIL = (
    "an activation of Core ML (MIL `elementwise_unary`, `activation`), treated as those of coremltools' patterns"
)


def _range_of_clamp(node: Node) -> OutputRange:
    """Returns the output range of hardtanh(x, min, max) or clamp(x, min, max): non-negative if the lower bound is."""
    default = -1.0 if node.target is aten.hardtanh.default or node.target is aten.hardtanh_.default else None
    lower = node.args[1] if len(node.args) > 1 else node.kwargs.get("min_val", node.kwargs.get("min", default))
    non_negative = isinstance(lower, int | float) and lower >= 0
    return OutputRange.NON_NEGATIVE if non_negative else OutputRange.ANY


RULES = (
    *(
        OpRule(op, Treatment.ACTIVATION, output_range=OutputRange.NON_NEGATIVE, reason=_WHY, source=_SOURCE)
        for op in with_in_place(aten.relu, aten.relu6)
    ),
    *(
        OpRule(op, Treatment.ACTIVATION, output_range=_range_of_clamp, reason=_WHY, source=_SOURCE)
        for op in with_in_place(aten.hardtanh, aten.clamp, aten.clamp_min)
    ),
    *(
        OpRule(op, Treatment.ACTIVATION, reason=_WHY, source=_SOURCE)
        for op in with_in_place(
            aten.leaky_relu, aten.prelu, aten.elu, aten.celu, aten.selu, aten.gelu, aten.silu, aten.mish, aten.hardswish
        )
    ),
    *(
        OpRule(op, Treatment.ACTIVATION, reason=_WHY, source=_SOURCE_MIL)
        for op in with_in_place(aten.softplus, aten.clamp_max, aten.threshold, aten.rrelu, aten.log_sigmoid)
    ),
    *(
        OpRule(op, Treatment.ACTIVATION, output_range=UNIT_INTERVAL, reason=_WHY_FIXED, source=_SOURCE)
        for op in with_in_place(aten.sigmoid, aten.hardsigmoid)
    ),
    *(
        OpRule(op, Treatment.ACTIVATION, output_range=SYMMETRIC_UNIT_INTERVAL, reason=_WHY_FIXED, source=_SOURCE)
        for op in with_in_place(aten.tanh)
    ),
)
