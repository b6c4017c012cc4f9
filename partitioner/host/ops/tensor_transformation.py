"""Operations that only change the shape or the order of elements."""

import math

import torch

from partitioner.host.mil.model import Opset
from partitioner.host.registry import Ints, Tensors, register_op


@register_op("reshape", exact=True)
def reshape(x: torch.Tensor, shape: Ints) -> torch.Tensor:
    """Returns x in another shape; 0 keeps the size of the same dimension, -1 takes what remains."""
    if 0 in shape and len(shape) != x.ndim:
        raise ValueError(f"a 0 in the shape {shape} needs an input of the same rank, not of shape {tuple(x.shape)}")
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


@register_op("reshape", since=Opset.IOS17, exact=True)
def reshape_from_the_right(x: torch.Tensor, shape: Ints) -> torch.Tensor:
    """Returns x in another shape; unlike `reshape`, matches dimensions from the last one. A 0 without a match is 1."""
    if 0 not in shape or x.numel() == 0:
        return x.reshape(shape)
    offset = x.ndim - len(shape)
    kept = [x.shape[axis + offset] if axis + offset >= 0 else 1 for axis in range(len(shape))]
    return x.reshape([kept[axis] if size == 0 else size for axis, size in enumerate(shape)])


@register_op("reshape_like", since=Opset.IOS16, exact=True)
def reshape_like(
    x: torch.Tensor, ref_tensors: Tensors, begins: Tensors, ends: Tensors, end_masks: Tensors
) -> torch.Tensor:
    """Returns x in the shape that slices of the references' shapes make."""
    shape: list[int] = []
    for reference, begin, end, mask in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += reference.shape[int(begin) : None if bool(mask) else int(end)]
    return x.reshape(shape)


@register_op("expand_dims", exact=True)
def expand_dims(x: torch.Tensor, axes: Ints) -> torch.Tensor:
    """Returns x with dimensions of size one at ``axes`` of the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@register_op("squeeze", exact=True)
def squeeze(x: torch.Tensor, axes: Ints | None = None) -> torch.Tensor:
    """Returns x without the dimensions ``axes`` (all when None) that are of size one."""
    return torch.squeeze(x) if axes is None else torch.squeeze(x, axes)


@register_op("transpose", exact=True)
def transpose(x: torch.Tensor, perm: Ints) -> torch.Tensor:
    """Returns x with its dimensions reordered."""
    return x.permute(perm) if perm else x


@register_op("flatten2d", exact=True)
def flatten2d(x: torch.Tensor, axis: int = 1) -> torch.Tensor:
    """Returns x as a matrix: dimensions before ``axis`` by dimensions from it on."""
    before = math.prod(x.shape[:axis])
    return x.reshape(before, math.prod(x.shape[axis:]))


@register_op("reverse", exact=True)
def reverse(x: torch.Tensor, axes: Ints | None = None) -> torch.Tensor:
    """Returns x backwards along ``axes`` (all when None)."""
    return torch.flip(x, axes if axes is not None else tuple(range(x.ndim)))


@register_op("reverse_sequence", exact=True)
def reverse_sequence(x: torch.Tensor, lengths: torch.Tensor, seq_axis: int = 0, batch_axis: int = 0) -> torch.Tensor:
    """Reverses the first ``lengths[i]`` elements along ``seq_axis``, for each i along ``batch_axis``."""
    moved = x.movedim((batch_axis, seq_axis), (0, 1))
    positions = torch.arange(moved.shape[1])[None, :]
    limits = lengths.to(torch.int64)[:, None]
    source = torch.where(positions < limits, limits - 1 - positions, positions)
    index = source.reshape(*source.shape, *[1] * (moved.ndim - 2)).expand(moved.shape)
    return moved.gather(1, index).movedim((0, 1), (batch_axis, seq_axis))


@register_op("sliding_windows", exact=True)
def sliding_windows(x: torch.Tensor, axis: int, size: int, stride: int = 1) -> torch.Tensor:
    """Returns all windows along ``axis``; a window's elements are a new dimension after it."""
    positive = axis % x.ndim
    return x.unfold(positive, size, stride).movedim(-1, positive + 1)


@register_op("concat", exact=True)
def concat(values: Tensors, axis: int, interleave: bool = False) -> torch.Tensor:
    """Joins tensors along ``axis``; interleaved, their slices take turns."""
    if not interleave:
        return torch.cat([value if value.ndim else value.reshape(1) for value in values], axis)
    positive = axis % values[0].ndim
    return torch.stack(values, positive + 1).flatten(positive, positive + 1)


@register_op("stack", exact=True)
def stack(values: Tensors, axis: int) -> torch.Tensor:
    """Joins tensors along a new dimension."""
    return torch.stack(values, axis)


@register_op("split", exact=True)
def split(
    x: torch.Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None
) -> torch.Tensor | Tensors:
    """Cuts x along ``axis`` into equal parts or parts of given sizes."""
    if split_sizes is None:
        if not num_splits or x.shape[axis] % num_splits:
            raise ValueError(f"cannot split {x.shape[axis]} elements into {num_splits} equal parts")
        split_sizes = (x.shape[axis] // num_splits,) * num_splits
    parts = torch.split(x, list(split_sizes), axis)
    return parts[0] if len(parts) == 1 else parts
