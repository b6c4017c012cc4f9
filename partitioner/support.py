"""Whether Core ML can take an operation, decided from the operation, its arguments and its dtypes.

The base is Core ML Tools' list of converters; `CHECKS` names the cases in which a listed converter does not do what
the operation means. Every check returns the reason of a refusal, or None.
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from partitioner.integers import scalar_refusal, wide_constants
from partitioner.lowerings import has_converter
from partitioner.nodes import argument, constant_names, op_name, skip_name, source_line, tensor_of


@dataclass(frozen=True)
class Rejection:
    """An operation that stays outside Core ML, and why.

    Attributes:
        op: The operation's full name.
        node: The node's name.
        reason: Why Core ML does not take it.
        source: The line of the model that made it, when known.
    """

    op: str
    node: str
    reason: str
    source: str | None = None

    def __str__(self) -> str:
        place = f" ({self.source})" if self.source else ""
        return f"{self.op} [{self.node}]{place}: {self.reason}"


Check = Callable[[Node], str | None]


def _never(reason: str) -> Check:
    return lambda node: reason


def _integer_bits(node: Node) -> str | None:
    tensors = [tensor for value in (node, *node.all_input_nodes) if (tensor := tensor_of(value)) is not None]
    if all(tensor.dtype == torch.bool for tensor in tensors):
        return None
    return "Core ML has bitwise operations on booleans only"


def _dilated_pool(node: Node) -> str | None:
    dilation = argument(node, 4, "dilation", 1)
    if any(step != 1 for step in (dilation if isinstance(dilation, (list, tuple)) else [dilation])):
        return f"Core ML has no dilated max pooling (dilation={dilation})"
    if any(user.target is operator.getitem and user.args[1] != 0 and user.users for user in node.users):
        return "Core ML has no indices of max pooling"
    return None


def _average_divisor(node: Node) -> str | None:
    divisor = argument(node, 6, "divisor_override")
    return None if divisor is None else f"Core ML has no average pooling with divisor_override={divisor}"


def _constant_qparams(node: Node) -> str | None:
    return "the scale is a tensor; Core ML needs a constant scale and zero point"


CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "aten.diagonal.default": _never("Core ML returns wrong values (coremltools#2565)"),
        "aten.diagonal_copy.default": _never("Core ML returns wrong values (coremltools#2565)"),
        "aten.acosh.default": _never("Core ML has no such operation (coremltools#2569)"),
        "aten.asinh.default": _never("Core ML has no such operation (coremltools#2569)"),
        "aten.rand.default": _never("the converter cannot read its arguments (executorch#11722)"),
        "aten.max_pool2d.default": _dilated_pool,
        "aten.max_pool3d.default": _dilated_pool,
        "aten.max_pool2d_with_indices.default": _dilated_pool,
        "aten.max_pool3d_with_indices.default": _dilated_pool,
        "aten.avg_pool2d.default": _average_divisor,
        "aten.avg_pool3d.default": _average_divisor,
        "aten.bitwise_and.Scalar": _integer_bits,
        "aten.bitwise_and.Tensor": _integer_bits,
        "quantized_decomposed.quantize_per_tensor.tensor": _constant_qparams,
        "quantized_decomposed.dequantize_per_tensor.tensor": _constant_qparams,
    }
)

# What a Core ML model takes and returns; anything else may only live inside a partition.
_BOUNDARY_DTYPES = frozenset(
    {torch.bool, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64}
)
_INNER_DTYPES = _BOUNDARY_DTYPES | {torch.int8, torch.uint8}


def refusal(node: Node, skipped: frozenset[str]) -> str | None:
    """The reason why Core ML does not take a node by itself, or None.

    Args:
        node: A ``call_function`` node of an ATen or edge program.
        skipped: Lower-case names that the user keeps outside Core ML.
    """
    if skip_name(node) in skipped:
        return "listed in skip_ops_for_coreml_delegation"
    if node.target is operator.getitem:
        return None
    if not callable(node.target) or not has_converter(node.target):
        return "Core ML Tools has no converter for it"
    check = CHECKS.get(op_name(node))
    reason = check(node) if check is not None else None
    return reason or _dtype_refusal(node) or scalar_refusal(node)


def _dtype_refusal(node: Node) -> str | None:
    for value in (node, *node.all_input_nodes):
        tensor = tensor_of(value)
        if tensor is not None and tensor.dtype not in _INNER_DTYPES:
            return f"Core ML has no dtype {tensor.dtype}"
    return None


def decide(program: ExportedProgram, skipped: Iterable[str] = ()) -> dict[Node, str | None]:
    """Decides every operation of an edge program.

    Args:
        program: The edge program.
        skipped: Lower-case names that the user keeps outside Core ML.

    Returns:
        Every ``call_function`` node -> None when Core ML takes it, else the reason why not.
    """
    names = frozenset(skipped)
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    wide = dict(wide_constants(program))
    decisions: dict[Node, str | None] = {}
    for node in nodes:
        reason = scalar_refusal(node) or next((wide[i.name] for i in node.all_input_nodes if i.name in wide), None)
        decisions[node] = refusal(node, names) or reason
        result = tensor_of(node)
        if reason is not None and result is not None and result.dtype == torch.int64:
            wide[node.name] = reason
    constants = constant_names(program)
    # Refusing one node can expose an inner dtype at the boundary of its neighbours; each round refuses at least one.
    while True:
        exposed = {
            node: reason
            for node in nodes
            if decisions[node] is None and (reason := _exposed_dtype(node, decisions, constants))
        }
        if not exposed:
            return decisions
        decisions.update(exposed)


def _exposed_dtype(node: Node, decisions: Mapping[Node, str | None], constants: frozenset[str]) -> str | None:
    for value in node.all_input_nodes:
        tensor = tensor_of(value)
        if tensor is None or tensor.dtype in _BOUNDARY_DTYPES:
            continue
        if value.name not in constants and decisions.get(value, "outside") is not None:
            return f"it reads {value.name!r} from outside Core ML, which takes no {tensor.dtype} inputs"
    tensor = tensor_of(node)
    if tensor is None or tensor.dtype in _BOUNDARY_DTYPES:
        return None
    if any(decisions.get(user, "outside") is not None for user in node.users):
        return f"its result is needed outside Core ML, which returns no {tensor.dtype} outputs"
    return None


def rejections(decisions: Mapping[Node, str | None]) -> list[Rejection]:
    """The refused operations, in graph order."""
    return [
        Rejection(op_name(node), node.name, reason, source_line(node.meta.get("stack_trace")))
        for node, reason in decisions.items()
        if reason is not None
    ]
