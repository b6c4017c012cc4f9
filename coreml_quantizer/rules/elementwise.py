"""Binary operators between activations."""

import torch

from coreml_quantizer.rules.registry import OpRule, Treatment

aten = torch.ops.aten

_WHY = "keeps a residual connection in int8, so that its neighbours need no float detour"
_SOURCE = "coremltools' LinearQuantizer binary patterns (add, sub, mul, alone or with ReLU)"


def _binary(op: torch._ops.OpOverloadPacket) -> OpRule:
    return OpRule(op, Treatment.QUANTIZED, inputs=(0, 1), combines=True, reason=_WHY, source=_SOURCE)


RULES = (
    _binary(aten.add),
    _binary(aten.add_),
    _binary(aten.sub),
    _binary(aten.sub_),
    _binary(aten.mul),
    _binary(aten.mul_),
)
