"""The composite operators that ExecuTorch keeps whole, so that Core ML gets each as one operation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch._decomp import get_decompositions
from torch.export import ExportedProgram
from torch.fx import Node

from partitioner.graph.nodes import constant_values
from partitioner.graph.ranks import exceeds_ranks
from partitioner.refusals import Refusal
from partitioner.support.decide import decide
from partitioner.support.kernels import has_kernel, is_decomposed

_ATEN = torch.ops.aten

_ALWAYS_DECOMPOSED = frozenset(
    {
        _ATEN.triu.default,
        _ATEN.tril.default,
        _ATEN.repeat_interleave.self_int,
        _ATEN.repeat_interleave.self_Tensor,
        _ATEN.where.default,
        _ATEN.nonzero_numpy.default,
    }
)
"""Operators that convert badly when they stay whole: triu and tril lose their edge overload, and repeat_interleave
becomes a slow loop. ExecuTorch fails on the lists that the last two return."""


def kept_whole(
    program: ExportedProgram, decisions: Mapping[Node, Refusal | None], constants: frozenset[str]
) -> dict[torch._ops.OpOverload, bool]:
    """Returns the operators of a program that may stay whole by kind, and whether Core ML takes every call of each.

    An operator of which Core ML refuses one call is decomposed everywhere: ExecuTorch decides by operator, and has no
    kernels for composite ones.

    Args:
        program: An ATen program.
        decisions: Every ``call_function`` node -> the reason why Core ML does not take it, or None.
        constants: Names of the values that the Core ML model will hold.
    """
    kept: dict[torch._ops.OpOverload, bool] = {}
    for node in program.graph.nodes:
        target = node.target
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            continue
        if kept.get(target, target not in _ALWAYS_DECOMPOSED and not _is_view(target)):
            kept[target] = decisions[node] is None and not exceeds_ranks(node, constants)
    return kept


def is_at_risk(target: torch._ops.OpOverload) -> bool:
    """Returns whether ExecuTorch would take an operator apart, or refuse it, unless it is asked to keep it whole."""
    return is_decomposed(target) or not has_kernel(target)


def decompose(program: ExportedProgram, skipped: frozenset[str], take_over_constants: bool) -> ExportedProgram:
    """Decomposes the composite operators that may not stay whole; views are left to ExecuTorch.

    Both ways of lowering start from the result. What an operator decomposes into is then decided in the same way for
    both, as if the model were written with it: the linear layers of an LSTM stay whole.

    Args:
        program: An ATen program in functional form.
        skipped: Lower-case names of the operators that the user keeps outside Core ML.
        take_over_constants: Whether the weights go into the Core ML model.

    Returns:
        The program itself when there is nothing to decompose.
    """
    decisions = decide(program, skipped, take_over_constants)
    kept = kept_whole(program, decisions, constant_values(program, take_over_constants))
    called = {node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    apart = [target for target in called if not kept.get(target, False) and not _is_view(target)]
    known = _decompositions() if apart else {}
    table = {target: known[target] for target in apart if target in known}
    if not table:
        return program
    apart_program = program.run_decompositions(table)
    if any(node.target in table for node in apart_program.graph.nodes):  # a decomposition that declines
        return apart_program
    # What they consist of may have to be taken apart too.
    return decompose(apart_program, skipped, take_over_constants)


def _decompositions() -> dict[Any, Any]:
    """Returns the decompositions of ExecuTorch's edge dialect."""
    table: dict[Any, Any] = torch.export.default_decompositions()
    places = dict.fromkeys((_ATEN.where.default, _ATEN.nonzero_numpy.default), _places)
    return {**table, **get_decompositions([_ATEN.linalg_vector_norm.default]), **places}


def _places(mask: torch.Tensor) -> list[torch.Tensor]:
    found = torch.nonzero(mask)
    return [found.select(1, axis) for axis in range(mask.dim())]


def _is_view(target: torch._ops.OpOverload) -> bool:
    arguments = target._schema.arguments
    alias = arguments[0].alias_info if arguments else None
    return alias is not None and not alias.is_write
