"""Checks of operator calls whose arguments a converter of Core ML Tools ignores or gets wrong.

A check returns the reason to keep the call outside Core ML, or None.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch.fx import Node

from partitioner.graph.nodes import argument, op_name, tensor_of
from partitioner.graph.size_bounds import largest_size
from partitioner.refusals import Kind, Refusal

Check = Callable[[Node], str | None]

_BICUBIC = 2  # the interpolation mode of aten.grid_sampler


def _never(reason: str) -> Check:
    return lambda node: reason


def _integer_bits(node: Node) -> str | None:
    tensors = [tensor for value in (node, *node.all_input_nodes) if (tensor := tensor_of(value)) is not None]
    if all(tensor.dtype == torch.bool for tensor in tensors):
        return None
    return "Core ML has bitwise operations on booleans only"


def _max_pool(node: Node) -> str | None:
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


def _plain_equation(node: Node) -> str | None:
    """Refuses an equation that MIL's einsum lacks; decomposed, every equation is products of matrices."""
    terms, arrow, _ = str(node.args[0]).replace(" ", "").partition("->")
    if "." in terms or not arrow:
        return "Core ML Tools converts einsum only where the equation names every dimension, and those of the result"
    operands: Any = node.args[1]
    sizes: dict[str, int] = {}
    for term, operand in zip(terms.split(","), operands, strict=True):
        tensor = tensor_of(operand)
        shape: Sequence[Any] = () if tensor is None else tensor.shape
        for label, size in zip(term, shape, strict=False):
            # A dynamic size is not compared: that would make it a constant of the program.
            if isinstance(size, int) and sizes.setdefault(label, size) != size:
                return f"Core ML Tools does not broadcast the dimension {label!r} of an einsum"
    return None


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
    """Returns a check of the arguments at two positions: the scale factors, and whether corners are aligned."""

    def check(node: Node) -> str | None:
        factors, x = argument(node, scales, "scale_factors"), tensor_of(node.args[0])
        if x is None or not factors or (align_corners is not None and argument(node, align_corners, "align_corners")):
            return None
        sizes = zip(x.shape[2:], factors, strict=True)
        if all(float(size * factor if type(size) is int else factor).is_integer() for size, factor in sizes):
            return None
        return f"Core ML resamples by the ratio of the sizes, which is not {tuple(factors)}"

    return check


def _unbounded(node: Node) -> str | None:
    x = tensor_of(node.args[0])
    if x is None or x.dim() == 0 or largest_size(x.shape[node.args[1]]) is not None:  # type: ignore[index]
        return None
    return "the dimension has no upper bound; export with dynamic_shapes of torch.export.Dim('name', max=...)"


def _varying_windows(node: Node) -> str | None:
    known = all(isinstance(argument(node, position, name), int) for position, name in ((2, "size"), (3, "step")))
    return None if known else "Core ML needs windows of a fixed size and step"


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
        **{
            f"aten.{name}.default": _max_pool
            for rank in (1, 2, 3)
            for name in (f"max_pool{rank}d", f"max_pool{rank}d_with_indices", f"adaptive_max_pool{rank}d")
        },
        "aten.avg_pool2d.default": _average_divisor,
        "aten.avg_pool3d.default": _average_divisor,
        "aten.bitwise_and.Scalar": _integer_bits,
        "aten.bitwise_and.Tensor": _integer_bits,
        "aten.bitwise_or.Scalar": _integer_bits,
        "aten.bitwise_or.Tensor": _integer_bits,
        "aten.bitwise_xor.Scalar": _integer_bits,
        "aten.bitwise_xor.Tensor": _integer_bits,
        "aten.rms_norm.default": _default_eps,
        "aten._unique2.default": _never("Core ML Tools cannot read its arguments"),
        **{
            f"aten.{name}.default": _never("Core ML has no such operation")
            for name in ("nll_loss_nd", "nll_loss", "nll_loss2d", "cross_entropy_loss")
        },
        "aten.tile.default": _new_dimensions,
        "aten.roll.default": _flattened,
        "aten.einsum.default": _plain_equation,
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
        "aten.logcumsumexp.default": _unbounded,
        "aten.unfold.default": _varying_windows,
        "aten.unfold_copy.default": _varying_windows,
        "aten.grid_sampler.default": _bicubic_grid,
        "aten.grid_sampler_2d.default": _bicubic_grid,
        **{f"aten.{name}.{kind}": _of_numbers for name in ("all", "any") for kind in ("default", "dim", "dims")},
        "quant.dequantize_codebook.default": _vector_table,
        "quantized_decomposed.quantize_per_tensor.tensor": _constant_qparams,
        "quantized_decomposed.dequantize_per_tensor.tensor": _constant_qparams,
    }
)

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
"""Operator -> positions of the operands that Core ML takes as constants only."""

_KINDS: Mapping[Check, Kind] = MappingProxyType(
    {
        _integer_bits: Kind.INTEGER_BITS,
        _of_numbers: Kind.INTEGER_BITS,
        _constant_qparams: Kind.COMPUTED_OPERAND,
    }
)
"""Check -> the kind of its refusals. Those of all other checks are about the arguments of the call."""


def check(node: Node) -> Refusal | None:
    """Returns why an operator's converter gets this call of it wrong, or None."""
    known = CHECKS.get(op_name(node))
    reason = None if known is None else known(node)
    return None if known is None or reason is None else Refusal(_KINDS.get(known, Kind.ARGUMENTS), reason)
