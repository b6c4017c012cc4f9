"""The composite operators that ExecuTorch keeps whole, so that Core ML gets each as one operation."""

import torch
from torch.export import ExportedProgram

from partitioner.graph.ranks import exceeds_ranks
from partitioner.support.decide import refusal

_ATEN = torch.ops.aten

_ALWAYS_DECOMPOSED = frozenset(
    {
        _ATEN.triu.default,
        _ATEN.tril.default,
        _ATEN.repeat_interleave.self_int,
        _ATEN.repeat_interleave.self_Tensor,
    }
)
"""Operators that convert badly when they stay whole: triu and tril lose their edge overload, and repeat_interleave
becomes a slow loop."""


def kept_whole(
    program: ExportedProgram, skipped: frozenset[str], constants: frozenset[str]
) -> dict[torch._ops.OpOverload, bool]:
    """Returns every operator of a program, and whether it may stay whole.

    An operator of which Core ML refuses one call is decomposed everywhere: ExecuTorch decides by operator, and has no
    kernels for composite ones.

    Args:
        program: An ATen or edge program.
        skipped: Lower-case names of the operators that the user keeps outside Core ML.
        constants: Names of the values that the Core ML model will hold.
    """
    kept: dict[torch._ops.OpOverload, bool] = {}
    for node in program.graph.nodes:
        target = node.target
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            continue
        if kept.get(target, target not in _ALWAYS_DECOMPOSED and not _is_view(target)):
            kept[target] = refusal(node, skipped, constants) is None and not exceeds_ranks(node, constants)
    return kept


def _is_view(target: torch._ops.OpOverload) -> bool:
    arguments = target._schema.arguments
    alias = arguments[0].alias_info if arguments else None
    return alias is not None and not alias.is_write
