"""Rules for binary operators between activations."""

import torch
from torch.fx import Node

from coreml_quantizer.rules.registry import OpRule, Treatment, with_in_place

aten = torch.ops.aten

_WHY = "keeps a residual connection in int8, so that its neighbours need no float detour"
_SOURCE = "coremltools' LinearQuantizer binary patterns (add, sub, mul, alone or with ReLU)"
_LONGEST_CHAIN = 4
"""The most operators through which an operand is traced back to a constant: enough for a view of a converted buffer."""


def _is_constant(value: object) -> bool:
    """Returns whether an operand is a number, a parameter or buffer, or a view of one."""
    for _ in range(_LONGEST_CHAIN):
        if not isinstance(value, Node) or value.op == "get_attr":
            return True
        if value.op != "call_function" or len(value.all_input_nodes) != 1:
            return False
        (value,) = value.all_input_nodes
    return False


def _divides_by_a_constant(node: Node) -> bool:
    divisor = node.args[1] if len(node.args) > 1 else None
    return _is_constant(divisor) and node.kwargs.get("rounding_mode") is None


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
            otherwise="eight bits round small divisors to zero, and the quotient to infinity; a rounded quotient jumps",
            reason="by a constant it is a multiplication",
            source="Core ML Tools pass divide_to_multiply; as mul",
        )
        for op in with_in_place(aten.div)
    ),
)
