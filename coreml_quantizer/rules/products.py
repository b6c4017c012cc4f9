"""Rules for operators that have a weight or multiply matrices: they gain most from int8 arithmetic."""

from collections.abc import Mapping

import torch
from torch.fx import Node

from coreml_quantizer.rules.einsum import einsum_inputs, einsum_weights, multiplies
from coreml_quantizer.rules.registry import OpRule, Position, Treatment, WeightRole

aten = torch.ops.aten

_WHY = "int8 weights and activations run on the Neural Engine's int8 path"
_SOURCE = "coremltools guide, Linear Quantization, Performance (A17 Pro and M4); coremltools' LinearQuantizer patterns"
_TRANSPOSED = 6


def _weighted(op: torch._ops.OpOverloadPacket, channel_axis: int = 0) -> OpRule:
    return OpRule(op, Treatment.QUANTIZED, weight=WeightRole(1, channel_axis), reason=_WHY, source=_SOURCE)


def _product(op: torch._ops.OpOverloadPacket) -> OpRule:
    return OpRule(op, Treatment.QUANTIZED, inputs=(0, 1), contracts=((0, -1), (1, -2)), reason=_WHY, source=_SOURCE)


def _product_with_sum(op: torch._ops.OpOverloadPacket) -> OpRule:
    """Returns the rule of a matrix product with an addend: a bias if that is a constant, a residual otherwise."""
    return OpRule(op, Treatment.QUANTIZED, inputs=(1, 2, 0), contracts=((1, -1), (2, -2)), reason=_WHY, source=_SOURCE)


def _convolution_weight(node: Node) -> Mapping[Position, int]:
    return {1: 1 if node.args[_TRANSPOSED] else 0}


RULES = (
    OpRule(
        aten.scaled_dot_product_attention,
        Treatment.QUANTIZED,
        inputs=(0, 1, 2),
        reason="queries, keys and values come from quantized projections; the mask is never quantized",
        source="its two products are matmul patterns of coremltools' LinearQuantizer",
    ),
    _weighted(aten.conv1d),
    _weighted(aten.conv2d),
    _weighted(aten.conv3d),
    _weighted(aten.conv_transpose1d, channel_axis=1),
    _weighted(aten.conv_transpose2d, channel_axis=1),
    _weighted(aten.conv_transpose3d, channel_axis=1),
    OpRule(
        aten.convolution,
        Treatment.QUANTIZED,
        weights_of=_convolution_weight,
        reason="every convolution of a decomposed graph; its weight has output channels on axis 1 when transposed",
        source=_SOURCE,
    ),
    _weighted(aten.linear),
    _product(aten.matmul),
    _product(aten.bmm),
    _product(aten.mm),
    _product(aten.mv),
    _product_with_sum(aten.addmm),
    _product_with_sum(aten.baddbmm),
    OpRule(
        aten.einsum,
        Treatment.QUANTIZED,
        inputs=einsum_inputs,
        weights_of=einsum_weights,
        applies=multiplies,
        otherwise="with a single operand it multiplies nothing",
        reason="becomes matrix products when it is lowered; constant operands are weights",
        source="coremltools' LinearQuantizer einsum pattern",
    ),
)
