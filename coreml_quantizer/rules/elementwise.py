"""Binary operators between activations."""

import torch
from torch.fx import Node

from coreml_quantizer.rules.registry import OpRule, Treatment, with_in_place

aten = torch.ops.aten

_WHY = "keeps a residual connection in int8, so that its neighbours need no float detour"
_SOURCE = "coremltools' LinearQuantizer binary patterns (add, sub, mul, alone or with ReLU)"


def _divides_by_a_constant(node: Node) -> bool:
    divisor = node.args[1] if len(node.args) > 1 else None
    constant = not isinstance(divisor, Node) or divisor.op == "get_attr"
    return constant and node.kwargs.get("rounding_mode") is None


RULES = (
    *(
        OpRule(op, Treatment.QUANTIZED, inputs=(0, 1), combines=True, reason=_WHY, source=_SOURCE)
        for op in with_in_place(aten.add, aten.sub, aten.mul)
    ),
    OpRule(
        aten.rsub,
        Treatment.QUANTIZED,
        inputs=(0, 1),
        combines=True,
        reason=_WHY,
        source="`1 - x` in an exported graph; as sub",
    ),
    *(
        OpRule(
            op,
            Treatment.QUANTIZED,
            combines=True,
            applies=_divides_by_a_constant,
            otherwise="eight bits round small divisors to zero, and the quotient to infinity",
            reason="by a constant it is a multiplication",
            source="Core ML Tools pass divide_to_multiply; as mul",
        )
        for op in with_in_place(aten.div)
    ),
)
