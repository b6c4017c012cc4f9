"""Whether Core ML can take an operation, decided from the operation, its arguments and its dtypes.

The base is Core ML Tools' list of converters; `CHECKS` names the cases in which a listed converter does not do what
the operation means. Every check returns the reason of a refusal, or None.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from partitioner.integers import scalar_refusal, wide_constants
from partitioner.lowerings import has_converter
from partitioner.nodes import argument, constant_names, constant_values, op_name, skip_name, source_line, tensor_of
from partitioner.ranks import rank_refusal


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

_BICUBIC = 2  # the interpolation mode of aten.grid_sampler


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


def _vector_table(node: Node) -> str | None:
    tables = tensor_of(node.args[1])
    if tables is not None and tables.shape[-1] != 1:
        return (
            f"the tables hold vectors of {tables.shape[-1]} elements; Core ML's expand along an axis that is not given"
        )
    return None


def _default_eps(node: Node) -> str | None:
    if argument(node, 3, "eps") is None:
        return "Core ML Tools takes another eps than PyTorch where none is given"
    return None


def _flattened(node: Node) -> str | None:
    return None if argument(node, 2, "dims", ()) else "Core ML rolls dimensions, not flattened tensors"


def _of_numbers(node: Node) -> str | None:
    x = tensor_of(node.args[0])
    return None if x is None or x.dtype == torch.bool else "Core ML has it for booleans only"


def _output_padding(padding: int, output_padding: int, transposed: int | None = None) -> Check:
    """Arguments at the given positions; `transposed` for the operation that has both kinds of convolution."""

    def check(node: Node) -> str | None:
        if transposed is not None and not argument(node, transposed, "transposed", False):
            return None
        added = argument(node, output_padding, "output_padding", 0)
        taken = argument(node, padding, "padding", 0)
        if any(_numbers(added)) and not any(_numbers(taken)):
            return "Core ML Tools converts output_padding only beside padding"
        return None

    return check


def _numbers(value: Any) -> Sequence[int]:
    return value if isinstance(value, (list, tuple)) else [value]


def _mask_among_indices(node: Node) -> str | None:
    indices: Any = node.args[1]
    masks = [
        index
        for index in indices
        if index is not None and (tensor := tensor_of(index)) is not None and tensor.dtype == torch.bool
    ]
    return "Core ML Tools takes a mask of places only by itself" if masks and len(indices) > 1 else None


def _low_threshold(node: Node) -> str | None:
    threshold = argument(node, 2, "threshold", 20)
    return None if threshold >= 20 else f"Core ML has no softplus that is linear beyond {threshold}"


def _fractional_size(scales: int, align_corners: int | None = None) -> Check:
    """Arguments at the given positions: the scale factors, and whether corners are aligned."""

    def check(node: Node) -> str | None:
        factors, x = argument(node, scales, "scale_factors"), tensor_of(node.args[0])
        if x is None or not factors or (align_corners is not None and argument(node, align_corners, "align_corners")):
            return None
        sizes = zip(x.shape[2:], factors, strict=True)
        if all(type(size) is not int or float(size * factor).is_integer() for size, factor in sizes):
            return None
        return f"Core ML resamples by the ratio of the sizes, which is not {tuple(factors)}"

    return check


def _bicubic_grid(node: Node) -> str | None:
    return "Core ML has no bicubic sampling" if argument(node, 2, "interpolation_mode", 0) == _BICUBIC else None


def _overlapping(node: Node) -> str | None:
    kernel, stride = argument(node, 2, "kernel_size"), argument(node, 5, "stride")
    overlaps = any(step < size for step, size in zip(stride, kernel, strict=True))
    return "Core ML cannot add up overlapping blocks" if overlaps else None


def _new_dimensions(node: Node) -> str | None:
    x = tensor_of(node.args[0])
    return "Core ML tiles existing dimensions only" if x is not None and len(node.args[1]) > x.dim() else None  # type: ignore[arg-type]


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
        "aten.bitwise_or.Scalar": _integer_bits,
        "aten.bitwise_or.Tensor": _integer_bits,
        "aten.bitwise_xor.Scalar": _integer_bits,
        "aten.bitwise_xor.Tensor": _integer_bits,
        "aten.rms_norm.default": _default_eps,
        "aten.nll_loss_nd.default": _never("Core ML has no such operation"),
        "aten.tile.default": _new_dimensions,
        "aten.conv_transpose1d.default": _output_padding(4, 5),
        "aten.conv_transpose2d.input": _output_padding(4, 5),
        "aten.conv_transpose3d.input": _output_padding(4, 5),
        "aten.convolution.default": _output_padding(4, 7, transposed=6),
        "aten.roll.default": _flattened,
        "aten.softplus.default": _low_threshold,
        "aten.col2im.default": _overlapping,
        **{
            f"aten._upsample_{kind}2d_aa.{form}": _never("Core ML resamples without antialiasing")
            for kind in ("bilinear", "bicubic")
            for form in ("vec", "default")
        },
        **{f"aten.upsample_nearest{rank}d.vec": _fractional_size(2) for rank in (1, 2, 3)},
        "aten.upsample_linear1d.vec": _fractional_size(3, align_corners=2),
        "aten.upsample_bilinear2d.vec": _fractional_size(3, align_corners=2),
        "aten.index_put.default": _mask_among_indices,
        "aten.grid_sampler.default": _bicubic_grid,
        "aten.grid_sampler_2d.default": _bicubic_grid,
        **{f"aten.{name}.{kind}": _of_numbers for name in ("all", "any") for kind in ("default", "dim", "dims")},
        "quant.dequantize_codebook.default": _vector_table,
        "quantized_decomposed.quantize_per_tensor.tensor": _constant_qparams,
        "quantized_decomposed.dequantize_per_tensor.tensor": _constant_qparams,
    }
)

# Positions of the operands that Core ML has as constants only.
CONSTANT_OPERANDS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "torchao.dequantize_affine.default": (0, 2, 3),
        "quant.dequantize_codebook.default": (0, 1),
        "aten.prelu.default": (1,),
        "aten.instance_norm.default": (1, 2, 3, 4),
        "aten.layer_norm.default": (2, 3),
        "aten.native_layer_norm.default": (2, 3),
        "quantized_decomposed.quantize_per_channel.default": (1, 2),
        "quantized_decomposed.dequantize_per_channel.default": (1, 2),
    }
)

# What a Core ML model takes and returns; anything else may only live inside a partition.
_BOUNDARY_DTYPES = frozenset(
    {torch.bool, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64}
)
_INNER_DTYPES = _BOUNDARY_DTYPES | {torch.int8, torch.uint8}


def is_boundary_dtype(dtype: torch.dtype) -> bool:
    """Whether Core ML models take and return tensors of a dtype."""
    return dtype in _BOUNDARY_DTYPES


def refusal(node: Node, skipped: frozenset[str], constants: frozenset[str]) -> str | None:
    """The reason why Core ML does not take a node by itself, or None.

    Args:
        node: A ``call_function`` node of an ATen or edge program.
        skipped: Lower-case names that the user keeps outside Core ML.
        constants: Names of the values that the Core ML model will hold; see `partitioner.nodes.constant_values`.
    """
    if skip_name(node) in skipped:
        return "listed in skip_ops_for_coreml_delegation"
    if node.target is operator.getitem:
        return None
    if not callable(node.target) or not has_converter(node.target):
        return "Core ML Tools has no converter for it"
    check = CHECKS.get(op_name(node))
    reason = check(node) if check is not None else None
    return reason or _computed_operand(node, constants) or _dtype_refusal(node) or scalar_refusal(node)


def _computed_operand(node: Node, constants: frozenset[str]) -> str | None:
    operands = [
        node.args[position] for position in CONSTANT_OPERANDS.get(op_name(node), ()) if position < len(node.args)
    ]
    computed = [operand.name for operand in operands if isinstance(operand, Node) and operand.name not in constants]
    return f"{', '.join(map(repr, computed))} would have to be constant in Core ML" if computed else None


def _dtype_refusal(node: Node) -> str | None:
    for value in (node, *node.all_input_nodes):
        tensor = tensor_of(value)
        if tensor is not None and tensor.dtype not in _INNER_DTYPES:
            return f"Core ML has no dtype {tensor.dtype}"
    return None


def decide(
    program: ExportedProgram, skipped: Iterable[str] = (), take_over_constants: bool = True
) -> dict[Node, str | None]:
    """Decides every operation of an edge program.

    Args:
        program: The edge program.
        skipped: Lower-case names that the user keeps outside Core ML.
        take_over_constants: Whether the weights go into the Core ML model.

    Returns:
        Every ``call_function`` node -> None when Core ML takes it, else the reason why not.
    """
    names = frozenset(skipped)
    known = constant_values(program, take_over_constants)
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    wide = dict(wide_constants(program))
    decisions: dict[Node, str | None] = {}
    for node in nodes:
        reason = scalar_refusal(node) or next((wide[i.name] for i in node.all_input_nodes if i.name in wide), None)
        decisions[node] = refusal(node, names, known) or reason
        result = tensor_of(node)
        if reason is not None and result is not None and result.dtype == torch.int64:
            wide[node.name] = reason
    refuse_exposed(program, decisions, known)
    return decisions


def refuse_exposed(
    program: ExportedProgram, decisions: dict[Node, str | None], known: frozenset[str] | None = None
) -> None:
    """Refuses, in `decisions`, every operation that would show the outside a value Core ML can only hold inside.

    Args:
        program: The edge program.
        decisions: Every ``call_function`` node -> the reason why Core ML does not take it, or None.
        known: Names of constant values, when they were already computed.
    """
    constants = constant_names(program)
    folded = constant_values(program) if known is None else known
    # Refusing one node can expose the values of its neighbours; each round refuses at least one.
    while True:
        exposed = {
            node: reason
            for node in decisions
            if decisions[node] is None and (reason := _exposed(node, decisions, constants, folded))
        }
        if not exposed:
            return
        decisions.update(exposed)


def crossing_refusals(groups: Sequence[Sequence[Node]]) -> dict[Node, str]:
    """Reasons to refuse what would pass between partitions in a dtype that no Core ML model takes or returns."""
    home = {node: index for index, group in enumerate(groups) for node in group}
    found = {}
    for node, index in home.items():
        for value in node.all_input_nodes:
            tensor = tensor_of(value)
            if tensor is not None and tensor.dtype not in _BOUNDARY_DTYPES and home.get(value, index) != index:
                found[value] = (
                    f"its result passes between two partitions, and Core ML returns no {tensor.dtype} outputs"
                )
                found[node] = f"it reads {value.name!r} from another partition; Core ML takes no {tensor.dtype} inputs"
    return found


def _exposed(
    node: Node, decisions: Mapping[Node, str | None], constants: frozenset[str], known: frozenset[str]
) -> str | None:
    return (
        _exposed_dtype(node, decisions, constants)
        or _exposed_layout(node, decisions)
        or rank_refusal(node, decisions, known)
    )


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


def _exposed_layout(node: Node, decisions: Mapping[Node, str | None]) -> str | None:
    """Refuses a copy into another memory format that is seen from outside: Core ML's results are contiguous."""
    if "dim_order" not in node.kwargs or all(decisions.get(user, "outside") is None for user in node.users):
        return None
    order = list(node.kwargs["dim_order"] or ())  # type: ignore[arg-type]
    return None if order == sorted(order) else f"its result is needed outside Core ML in dimension order {order}"


def rejections(decisions: Mapping[Node, str | None]) -> list[Rejection]:
    """The refused operations, in graph order."""
    return [
        Rejection(op_name(node), node.name, reason, source_line(node.meta.get("stack_trace")))
        for node, reason in decisions.items()
        if reason is not None
    ]
