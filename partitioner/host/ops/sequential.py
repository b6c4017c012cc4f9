"""Sums in half precision, one product after another: the arithmetic of the policy ``sequential16``.

Every partial sum is rounded to half precision. This is the least exact arithmetic that a unit with half-precision
accumulators could use, in the most unfavorable order, and slow here: it is there to bound, not to run often.
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from partitioner.host.execution.policy import round_to_half
from partitioner.host.ops.linear import matmul as exact_matmul
from partitioner.host.ops.windows import dilated, resolve_pads, torch_padding
from partitioner.host.registry import Ints, register_sequential


@register_sequential("linear")
def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Returns x @ weight.T + bias; the sum starts at the bias."""
    columns = weight.to(x.dtype).unbind(1)
    total = torch.zeros(*x.shape[:-1], weight.shape[0]) if bias is None else bias.to(x.dtype)
    for values, column in zip(x.unbind(-1), columns, strict=True):
        total = round_to_half(total + values.unsqueeze(-1) * column)
    return total


@register_sequential("matmul")
def matmul(x: torch.Tensor, y: torch.Tensor, transpose_x: bool = False, transpose_y: bool = False) -> torch.Tensor:
    """Returns the product of matrices; other ranks are computed exactly."""
    if x.ndim < 2 or y.ndim < 2 or not (x.is_floating_point() and y.is_floating_point()):
        return exact_matmul(x, y, transpose_x, transpose_y)
    left, right = (x.mT if transpose_x else x), (y.mT if transpose_y else y)
    total = torch.zeros(())
    for column, row in zip(left.unbind(-1), right.unbind(-2), strict=True):
        total = round_to_half(total + column.unsqueeze(-1) * row.unsqueeze(-2))
    return total


@register_sequential("conv")
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
    """Returns the convolution; the sum starts at the bias and takes channels, then positions of the kernel."""
    spatial = x.ndim - 2
    strides, dilations = strides or (1,) * spatial, dilations or (1,) * spatial
    extents = dilated(weight.shape[2:], dilations)
    padded = F.pad(x, torch_padding(resolve_pads(pad_type, pad, x.shape[2:], extents, strides)))
    sizes = [
        (size - extent) // stride + 1 for size, extent, stride in zip(padded.shape[2:], extents, strides, strict=True)
    ]
    grouped = padded.reshape(len(x), groups, -1, *padded.shape[2:])
    kernels = weight.reshape(groups, -1, *weight.shape[1:])
    ones = (1,) * spatial
    start = x.new_zeros(weight.shape[0]) if bias is None else bias
    total = start.reshape(1, groups, -1, *ones)
    for channel, *tap in itertools.product(*map(range, weight.shape[1:])):
        window = grouped.select(2, channel)[_window(tap, sizes, strides, dilations)]
        factor = kernels.select(2, channel).flatten(2)[:, :, _position(tap, weight.shape[2:])]
        factor = factor.reshape(1, groups, -1, *ones)
        total = round_to_half(total + window.unsqueeze(2) * factor)
    return total.flatten(1, 2)


@register_sequential("reduce_sum")
def reduce_sum(x: torch.Tensor, axes: Ints | None = None, keep_dims: bool = False) -> torch.Tensor:
    """Returns the sum over ``axes`` (all when None)."""
    chosen = sorted({axis % x.ndim for axis in axes}) if axes else list(range(x.ndim))
    kept = [axis for axis in range(x.ndim) if axis not in chosen]
    rows = x.permute(*chosen, *kept).reshape(-1, *(x.shape[axis] for axis in kept))
    total = torch.zeros(())
    for row in rows.unbind(0):
        total = round_to_half(total + row)
    return total.reshape([1 if axis in chosen else size for axis, size in enumerate(x.shape)]) if keep_dims else total


@register_sequential("reduce_mean")
def reduce_mean(x: torch.Tensor, axes: Ints | None = None, keep_dims: bool = False) -> torch.Tensor:
    """Returns the mean over ``axes`` (all when None): the sum, divided."""
    chosen = {axis % x.ndim for axis in axes} if axes else set(range(x.ndim))
    return reduce_sum(x, axes, keep_dims) / math.prod(x.shape[axis] for axis in chosen)


def _window(tap: Sequence[int], sizes: Sequence[int], strides: Ints, dilations: Ints) -> tuple[slice, ...]:
    """Returns what one position of the kernel reads of (batch, groups, *spatial)."""
    starts = [position * dilation for position, dilation in zip(tap, dilations, strict=True)]
    spatial = [
        slice(start, start + (size - 1) * stride + 1, stride)
        for start, size, stride in zip(starts, sizes, strides, strict=True)
    ]
    return (slice(None), slice(None), *spatial)


def _position(tap: Sequence[int], sizes: Sequence[int]) -> int:
    """Returns the index of a position in the flattened kernel."""
    index = 0
    for position, size in zip(tap, sizes, strict=True):
        index = index * size + position
    return index
