"""Floor divisions of integers of two types, for which ExecuTorch's dialect has no signature.

The dialect gives a Python number the type int64, and its ``floor_divide`` wants operands of one type. Its ``div`` with
``rounding_mode="floor"`` computes the same and takes operands of two.
"""

import torch
from torch.export import ExportedProgram

from partitioner.graph.nodes import tensor_of

_ATEN = torch.ops.aten


def replace_floor_divisions(program: ExportedProgram) -> None:
    """Replaces, in place, floor divisions whose operands do not have the same type.

    Args:
        program: A program in functional form, before decompositions.
    """
    changed = False
    for node in program.graph.nodes:
        if node.target == _ATEN.floor_divide.default and _is_mixed(node.args):
            node.target = _ATEN.div.Tensor_mode
            node.kwargs = {**node.kwargs, "rounding_mode": "floor"}
            changed = True
    if changed:
        program.graph_module.recompile()


def _is_mixed(operands: tuple[object, ...]) -> bool:
    tensors = [tensor_of(operand) for operand in operands]
    types = {torch.int64 if tensor is None else tensor.dtype for tensor in tensors}
    return len(types) > 1 and not any(dtype.is_floating_point for dtype in types)
