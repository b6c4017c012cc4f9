"""Activation functions, which fuse into the operator before them, softmax, and batch norm."""

import torch
from torch.fx import Node

from coreml_quantizer.rules.registry import (
    SYMMETRIC_UNIT_INTERVAL,
    UNIT_INTERVAL,
    OpRule,
    OutputRange,
    Treatment,
)
from coreml_quantizer.specs import FixedSpec

aten = torch.ops.aten

_WHY = "fuses with the operator before it, which then writes int8 once"
_WHY_FIXED = "its range is known, so nothing is observed"
_SOURCE = "coremltools' LinearQuantizer activation patterns"


def _activation(op: torch._ops.OpOverloadPacket, output_range: OutputRange | FixedSpec = OutputRange.ANY) -> OpRule:
    reason = _WHY_FIXED if isinstance(output_range, FixedSpec) else _WHY
    return OpRule(op, Treatment.ACTIVATION, output_range=output_range, reason=reason, source=_SOURCE)


def _range_of_clamp(node: Node) -> OutputRange:
    """hardtanh(x, min, max) and clamp(x, min, max): non-negative when the lower bound is."""
    default = -1.0 if node.target is aten.hardtanh.default or node.target is aten.hardtanh_.default else None
    lower = node.args[1] if len(node.args) > 1 else node.kwargs.get("min_val", node.kwargs.get("min", default))
    non_negative = isinstance(lower, int | float) and lower >= 0
    return OutputRange.NON_NEGATIVE if non_negative else OutputRange.ANY


def _clamp(op: torch._ops.OpOverloadPacket) -> OpRule:
    return OpRule(op, Treatment.ACTIVATION, output_range=_range_of_clamp, reason=_WHY, source=_SOURCE)


def _batch_norm(op: torch._ops.OpOverloadPacket) -> OpRule:
    reason = "folds into the convolution or linear layer before it"
    return OpRule(op, Treatment.BATCH_NORM, reason=reason, source="Krishnamoorthi 2018, section 3.2.2")


RULES = (
    _activation(aten.relu, OutputRange.NON_NEGATIVE),
    _activation(aten.relu_, OutputRange.NON_NEGATIVE),
    _activation(aten.relu6, OutputRange.NON_NEGATIVE),
    _activation(aten.relu6_, OutputRange.NON_NEGATIVE),
    _clamp(aten.hardtanh),
    _clamp(aten.hardtanh_),
    _clamp(aten.clamp),
    _clamp(aten.clamp_),
    _activation(aten.leaky_relu),
    _activation(aten.leaky_relu_),
    _activation(aten.prelu),
    _activation(aten.elu),
    _activation(aten.elu_),
    _activation(aten.selu),
    _activation(aten.celu),
    _activation(aten.gelu),
    _activation(aten.silu),
    _activation(aten.silu_),
    _activation(aten.mish),
    _activation(aten.mish_),
    _activation(aten.softplus),
    _activation(aten.hardswish),
    _activation(aten.hardswish_),
    _activation(aten.sigmoid, UNIT_INTERVAL),
    _activation(aten.sigmoid_, UNIT_INTERVAL),
    _activation(aten.hardsigmoid, UNIT_INTERVAL),
    _activation(aten.hardsigmoid_, UNIT_INTERVAL),
    _activation(aten.tanh, SYMMETRIC_UNIT_INTERVAL),
    _activation(aten.tanh_, SYMMETRIC_UNIT_INTERVAL),
    OpRule(
        aten.softmax,
        Treatment.FLOAT,
        output_range=UNIT_INTERVAL,
        reason="eight bits of scores before an exponential cost more accuracy than they save time",
        source="coremltools' LinearQuantizer, fixed qparams of softmax outputs",
    ),
    _batch_norm(aten.batch_norm),
)
