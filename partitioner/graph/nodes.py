"""Helpers that read fx nodes; they give the same answers for ATen and edge programs."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantizations
from torch.export import ExportedProgram
from torch.fx import Node

ROUNDINGS = frozenset(
    {
        torch.ops.quantized_decomposed.quantize_per_tensor.default,
        torch.ops.quantized_decomposed.dequantize_per_tensor.default,
    }
)
"""Quantizations and dequantizations of activations in the PT2E flow."""


def op_name(node: Node) -> str:
    """Returns the overload's full name, ``"aten.add.Tensor"``, for both ATen and edge operations."""
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):  # an edge operation holds the ATen one
        target = getattr(target, "_op", target)
    return str(target) if isinstance(target, torch._ops.OpOverload) else str(getattr(target, "__name__", target))


def skip_names(node: Node) -> frozenset[str]:
    """Returns the names under which `skip_ops_for_coreml_delegation` knows an operation.

    These are its own name, and the names of the operations that it was decomposed from.
    """
    names = {op_name(node).lower()}
    sources = list(node.meta.get("from_node") or ())
    while sources:
        source = sources.pop()
        names.add(str(source.target).lower())
        sources += source.from_node
    return frozenset(names)


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """Returns an argument that is given by position or by keyword, or its default."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def tensor_of(value: Any) -> torch.Tensor | None:
    """Returns the example tensor of a node, or None for anything else."""
    example = value.meta.get("val") if isinstance(value, Node) else None
    return example if isinstance(example, torch.Tensor) else None


def is_strided(value: Node) -> bool:
    """Returns whether the elements of a tensor of fixed sizes are in another order than its dimensions are."""
    tensor = tensor_of(value)
    if tensor is None or any(not isinstance(size, int) for size in (*tensor.shape, *tensor.stride())):
        return False
    order = tuple(tensor.dim_order())
    return order != tuple(sorted(order))


def is_viewable(value: torch.Tensor, shape: Sequence[int]) -> bool:
    """Returns whether a tensor has a view of `shape`. If not, a reshape copies the tensor and views the copy."""
    try:
        torch.empty_strided(value.shape, value.stride(), device="meta").view(shape)
    except RuntimeError:
        return False
    return True


def constant_names(program: ExportedProgram) -> frozenset[str]:
    """Returns the names of placeholders that hold parameters, buffers that are never written, or lifted tensors."""
    signature = program.graph_signature
    mutated = set(signature.buffers_to_mutate.values())
    buffers = (name for name, buffer in signature.inputs_to_buffers.items() if buffer not in mutated)
    return frozenset([*signature.inputs_to_parameters, *buffers, *signature.inputs_to_lifted_tensor_constants])


def constant_values(program: ExportedProgram, taken_over: bool = True) -> frozenset[str]:
    """Returns the names of values that are constants of the Core ML model, or are computed only from constants.

    Args:
        program: An ATen or edge program.
        taken_over: Whether the weights go into the model. If not, they are its inputs.
    """
    known = set(constant_names(program) if taken_over else ())
    for node in program.graph.nodes:
        if node.op == "call_function" and node.all_input_nodes and all(i.name in known for i in node.all_input_nodes):
            known.add(node.name)
    return frozenset(known)


def source_line(stack_trace: str | None) -> str | None:
    """Returns the innermost user frame of a stack trace on one line, for messages."""
    if not stack_trace:
        return None
    lines = [line.strip() for line in stack_trace.strip().splitlines()]
    frames = [index for index, line in enumerate(lines) if line.startswith("File ")]
    if not frames:
        return lines[-1] if lines else None
    place, *code = lines[frames[-1] :]
    return f"{place}: {code[0]}" if code else place


def place(node: Node) -> str:
    """Returns an operation's name and its source line in the model (else its node's name), for messages."""
    return f"{op_name(node)} ({source_line(node.meta.get('stack_trace')) or f'node {node.name!r}'})"
