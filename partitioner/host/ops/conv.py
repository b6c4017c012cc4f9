"""Convolutions."""

import torch
import torch.nn.functional as F

from partitioner.host.ops.windows import dilated, is_symmetric, resolve_pads, torch_padding
from partitioner.host.registry import Ints, register_op

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@register_op("conv")
def conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> torch.Tensor:
    """Returns the convolution of (N, C, *spatial) with a weight of (C_out, C / groups, *kernel)."""
    spatial = x.ndim - 2
    strides = strides or (1,) * spatial
    dilations = dilations or (1,) * spatial
    pads = resolve_pads(pad_type, pad, x.shape[2:], dilated(weight.shape[2:], dilations), strides)
    if is_symmetric(pads):
        padding = tuple(before for before, _ in pads)
    else:
        x, padding = F.pad(x, torch_padding(pads)), (0,) * spatial
    return _CONV[spatial](x, weight, bias, strides, padding, dilations, groups)


@register_op("conv_quantized")
def conv_quantized(
    x: torch.Tensor,
    weight: torch.Tensor,
    quantization_type: str,
    quant_scale: torch.Tensor,
    quant_bias: torch.Tensor,
    nbits: int = 8,
    bias: torch.Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> torch.Tensor:
    """Returns the convolution with ``weight * quant_scale + quant_bias``, scales per tensor or per output channel."""
    if quantization_type != "linear":
        raise ValueError(f"quantization_type {quantization_type!r} with {nbits} bits: only 'linear' is defined")
    shape = (-1, *[1] * (weight.ndim - 1))
    dense = weight.to(x.dtype) * quant_scale.reshape(shape) + quant_bias.reshape(shape)
    typed_bias = None if bias is None else bias.to(x.dtype)
    return conv(x, dense, typed_bias, strides, pad_type, pad, dilations, groups)


@register_op("conv_transpose")
def conv_transpose(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    pad: Ints | None = None,
    output_shape: Ints | None = None,
    pad_type: str = "valid",
    strides: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> torch.Tensor:
    """Returns the transposed convolution of (N, C, *spatial) with a weight of (C, C_out / groups, *kernel)."""
    spatial = x.ndim - 2
    strides = strides or (1,) * spatial
    dilations = dilations or (1,) * spatial
    extents = dilated(weight.shape[2:], dilations)
    full = [(size - 1) * stride + extent for size, stride, extent in zip(x.shape[2:], strides, extents, strict=True)]
    starts, sizes = _crop(pad_type, pad, output_shape, x.shape[2:], full, strides)
    extra = [start + size + start - whole for start, size, whole in zip(starts, sizes, full, strict=True)]
    # output_padding must be below the stride or the dilation; anything else is cut from the full result.
    if all(0 <= more < max(s, d) for more, s, d in zip(extra, strides, dilations, strict=True)):
        return _CONV_TRANSPOSE[spatial](x, weight, bias, strides, tuple(starts), tuple(extra), groups, dilations)
    result = _CONV_TRANSPOSE[spatial](x, weight, None, strides, 0, 0, groups, dilations)
    missing = [(0, max(0, start + size - whole)) for start, size, whole in zip(starts, sizes, full, strict=True)]
    result = F.pad(result, torch_padding(tuple(missing)))
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True), start=2):
        result = result.narrow(axis, start, size)
    return result if bias is None else result + bias.reshape(-1, *[1] * spatial)


def _crop(
    pad_type: str,
    pad: Ints | None,
    output_shape: Ints | None,
    sizes: torch.Size,
    full: list[int],
    strides: Ints,
) -> tuple[list[int], list[int]]:
    """Returns the first element and the size to keep of each dimension of the full result."""
    spatial = len(full)
    if pad_type == "custom":
        given = pad or (0,) * (2 * spatial)
        starts = list(given[::2])
        kept = [whole - before - after for whole, before, after in zip(full, given[::2], given[1::2], strict=True)]
        return starts, list(output_shape[2:]) if output_shape else kept
    if output_shape:
        kept = list(output_shape[2:])
    elif pad_type == "same":
        kept = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    else:
        kept = list(full)
    return [max(0, (whole - size) // 2) for whole, size in zip(full, kept, strict=True)], kept
