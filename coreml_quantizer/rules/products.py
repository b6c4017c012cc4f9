"""Operators with a weight or that multiply matrices: where int8 arithmetic pays."""

import torch

from coreml_quantizer.rules.registry import OpRule, Treatment, WeightRole

aten = torch.ops.aten

_WHY = "int8 weights and activations run on the Neural Engine's int8 path"
_SOURCE = "coremltools guide, Linear Quantization, Performance (A17 Pro and M4); coremltools' LinearQuantizer patterns"


def _weighted(op: torch._ops.OpOverloadPacket, channel_axis: int = 0) -> OpRule:
    return OpRule(op, Treatment.QUANTIZED, weight=WeightRole(1, channel_axis), reason=_WHY, source=_SOURCE)


def _product(op: torch._ops.OpOverloadPacket) -> OpRule:
    return OpRule(op, Treatment.QUANTIZED, inputs=(0, 1), contracts=((0, -1), (1, -2)), reason=_WHY, source=_SOURCE)


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
    _weighted(aten.linear),
    _product(aten.matmul),
    _product(aten.bmm),
    _product(aten.mm),
)
