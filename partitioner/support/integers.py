"""Integers that Core ML cannot hold: its widest integer is int32, so a 64-bit constant may lose its high bits."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.export import ExportedProgram
from torch.fx import Node

from partitioner.graph.nodes import tensor_of
from partitioner.refusals import Kind, Refusal

_SCALARS = ("number", "scalar", "tensor")  # an exported program may have a number in place of a tensor
_RANGE = torch.iinfo(torch.int32)


def scalar_refusal(node: Node) -> Refusal | None:
    """Returns the reason to refuse an operation on integers for one of its scalar arguments, or None.

    Sizes, bounds and dimensions are not scalars in the operator's schema; there, the largest int64 means "to the end".
    """
    schema = getattr(node.target, "_schema", None)
    if schema is None or _computes_floats(node):
        return None
    values = [
        (argument.name, node.args[position] if position < len(node.args) else node.kwargs.get(argument.name))
        for position, argument in enumerate(schema.arguments)
        if any(kind in str(argument.type).lower() for kind in _SCALARS)
    ]
    return next((_refusal(f"{name}={value}") for name, value in values if _is_too_wide(value)), None)


def wide_constants(program: ExportedProgram) -> Mapping[str, Refusal]:
    """Finds the constant tensors of a program with integers outside int32.

    Returns:
        Placeholder name -> the reason to refuse the operations that read it.
    """
    signature = program.graph_signature
    sources = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    found = {}
    for name, source in sources.items():
        value = program.constants.get(source, program.state_dict.get(source))
        wide = _widest(value) if isinstance(value, torch.Tensor) else None
        if wide is not None:
            found[name] = _refusal(f"the constant {name!r} holds {wide}")
    return found


def _widest(tensor: torch.Tensor) -> int | None:
    # A scalar that ExecuTorch made a constant is a fake tensor that remembers its value.
    value = tensor.constant if isinstance(tensor, FakeTensor) else tensor
    if value is None or value.dtype != torch.int64 or value.numel() == 0:
        return None
    # ExecuTorch partitions under a fake mode, in which even the values of real constants are unknown.
    with unset_fake_temporarily():
        return next((bound for bound in (int(value.min()), int(value.max())) if _is_too_wide(bound)), None)


def _computes_floats(node: Node) -> bool:
    inputs = [tensor for value in node.all_input_nodes if (tensor := tensor_of(value)) is not None]
    result = tensor_of(node)
    tensors = inputs or ([] if result is None else [result])
    return any(tensor.is_floating_point() for tensor in tensors)


def _is_too_wide(value: Any) -> bool:
    integer = isinstance(value, Integral) and not isinstance(value, bool)
    return integer and not _RANGE.min <= int(value) <= _RANGE.max


def _refusal(what: str) -> Refusal:
    reason = f"{what}, and Core ML has no integers outside int32 ({_RANGE.min} to {_RANGE.max})"
    return Refusal(Kind.WIDE_INTEGER, reason)
