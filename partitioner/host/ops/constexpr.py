"""Compressed constants: affine, block-wise, palettized and sparse."""

import math

import torch

from partitioner.host.mil.dtypes import BY_NAME
from partitioner.host.mil.model import Opset
from partitioner.host.reading.packing import unpack_bits
from partitioner.host.registry import Ints, Tensors, register_op


@register_op("constexpr_affine_dequantize", since=Opset.IOS16)
def constexpr_affine_dequantize(
    quantized_data: torch.Tensor, zero_point: torch.Tensor, scale: torch.Tensor, axis: int
) -> torch.Tensor:
    """Returns scale * (data - zero_point), both per tensor or along ``axis``."""
    shape = [1] * quantized_data.ndim
    shape[axis] = -1
    offset = zero_point.reshape(shape) if zero_point.ndim else zero_point
    factor = scale.reshape(shape) if scale.ndim else scale
    return (quantized_data.to(scale.dtype) - offset.to(scale.dtype)) * factor


@register_op("constexpr_blockwise_shift_scale", since=Opset.IOS18)
def constexpr_blockwise_shift_scale(
    data: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns scale * (data - offset).

    Each scale holds for a block of ``data.shape[i] / scale.shape[i]`` elements.
    """
    values = data.to(scale.dtype)
    if offset is not None:
        values = values - _spread(offset.to(scale.dtype), data.shape)
    return values * _spread(scale, data.shape)


@register_op("constexpr_cast", since=Opset.IOS16)
def constexpr_cast(source_val: torch.Tensor, output_dtype: str) -> torch.Tensor:
    """Returns the value in another type."""
    return source_val.to(BY_NAME[output_dtype].compute)


@register_op("constexpr_lut_to_dense", since=Opset.IOS16, exact=True)
def constexpr_packed_lut_to_dense(indices: torch.Tensor, lut: torch.Tensor, shape: Ints) -> torch.Tensor:
    """Returns ``lut[index]``, with indices of log2(len(lut)) bits packed into bytes."""
    bits = int(math.log2(lut.numel()))
    return lut[unpack_bits(indices, bits, math.prod(shape)).to(torch.int64)].reshape(shape)


@register_op("constexpr_lut_to_dense", since=Opset.IOS18, exact=True)
def constexpr_lut_to_dense(indices: torch.Tensor, lut: torch.Tensor, vector_axis: int | None = None) -> torch.Tensor:
    """Returns entries of lookup tables.

    ``lut`` has the shape (tables per dimension of indices, entries, vector). Each index picks a
    vector, which is laid out along ``vector_axis``.
    """
    *groups, entries, size = lut.shape
    table = torch.arange(math.prod(groups)).reshape(groups)
    which = _spread(table, indices.shape)
    vectors = lut.reshape(-1, entries, size)[which, indices.to(torch.int64)]
    if size == 1:
        return vectors.squeeze(-1)
    axis = (0 if vector_axis is None else vector_axis) % indices.ndim
    return vectors.movedim(-1, axis + 1).flatten(axis, axis + 1)


@register_op("constexpr_sparse_to_dense", since=Opset.IOS16, exact=True)
def constexpr_packed_sparse_to_dense(nonzero_data: torch.Tensor, mask: torch.Tensor, shape: Ints) -> torch.Tensor:
    """Returns zeros, with ``nonzero_data`` where the mask, one bit per element, is set."""
    return constexpr_sparse_to_dense(nonzero_data, unpack_bits(mask, 1, math.prod(shape)).reshape(shape))


@register_op("constexpr_sparse_to_dense", since=Opset.IOS18, exact=True)
def constexpr_sparse_to_dense(nonzero_data: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns zeros, with ``nonzero_data`` where the mask is set."""
    dense = torch.zeros(mask.shape, dtype=nonzero_data.dtype)
    dense[mask != 0] = nonzero_data
    return dense


@register_op("constexpr_lut_to_sparse", since=Opset.IOS18, exact=True)
def constexpr_lut_to_sparse(
    indices_mask: torch.Tensor,
    indices_nonzero_data: torch.Tensor,
    lut: torch.Tensor,
    vector_axis: int | None = None,
) -> Tensors:
    """Looks up the indices that a mask keeps, and returns the mask of the result and the values kept."""
    dense = constexpr_lut_to_dense(constexpr_sparse_to_dense(indices_nonzero_data, indices_mask), lut, vector_axis)
    mask = indices_mask
    if lut.shape[-1] > 1:
        mask = mask.repeat_interleave(lut.shape[-1], 0 if vector_axis is None else vector_axis)
    return mask, dense[mask != 0]


@register_op("constexpr_sparse_blockwise_shift_scale", since=Opset.IOS18)
def constexpr_sparse_blockwise_shift_scale(
    data_mask: torch.Tensor, nonzero_data: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None = None
) -> Tensors:
    """Returns the mask, and scale * (data - offset) of the values that it keeps."""
    dense = constexpr_blockwise_shift_scale(constexpr_sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]


def _spread(parameter: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Repeats each element over its block, so that the result broadcasts to ``shape``."""
    if parameter.ndim != len(shape):
        raise ValueError(f"block parameters of shape {tuple(parameter.shape)} for data of shape {tuple(shape)}")
    for axis, (count, size) in enumerate(zip(parameter.shape, shape, strict=True)):
        if size % count:
            raise ValueError(f"dimension {axis} of size {size} does not divide into {count} blocks")
        if count not in (1, size) or (count == 1 and parameter.dtype == torch.int64):
            parameter = parameter.repeat_interleave(size // count, axis)
    return parameter
