"""Slices."""

import torch

from partitioner.host.mil.model import Opset
from partitioner.host.registry import Bools, Ints, register_op


@register_op("slice_by_index", exact=True)
def slice_by_index(
    x: torch.Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> torch.Tensor:
    """Returns ``x[begin[0]:end[0]:stride[0], ...]`` as in numpy.

    A masked begin or end is the end of the dimension; where ``squeeze_mask`` is set, the dimension is indexed by begin.
    """
    slices = _resolve(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    flipped = [axis for axis, part in enumerate(slices) if isinstance(part, slice) and part.step < 0]
    if not flipped:
        return x[slices]
    # torch has no negative steps: walk the flipped dimension instead.
    forward = list(slices)
    for axis in flipped:
        forward[axis] = _mirrored(slices[axis], x.shape[axis])
    return torch.flip(x, flipped)[tuple(forward)]


@register_op("slice_by_size", exact=True)
def slice_by_size(x: torch.Tensor, begin: Ints, size: Ints) -> torch.Tensor:
    """Returns ``size`` elements from ``begin`` of each dimension; a size of -1 takes the rest."""
    for axis, (start, count) in enumerate(zip(begin, size, strict=True)):
        first = start + x.shape[axis] if start < 0 else start
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


@register_op("slice_update", since=Opset.IOS18, exact=True)
def slice_update(
    x: torch.Tensor,
    update: torch.Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> torch.Tensor:
    """Returns x with ``update`` in the slice that `slice_by_index` would take."""
    slices = _resolve(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    index = [
        torch.arange(size)[part] if not isinstance(part, slice) or part.step > 0 else _backwards(part, size)
        for part, size in zip(slices, x.shape, strict=True)
    ]
    flat = [entry.reshape(-1) for entry in index]
    grid = torch.meshgrid(*flat, indexing="ij")
    result = x.clone()
    result[grid] = update.reshape([len(entry) for entry in flat]).to(x.dtype)
    return result


def _resolve(
    x: torch.Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None,
    begin_mask: Bools | None,
    end_mask: Bools | None,
    squeeze_mask: Bools | None,
) -> tuple[slice | int, ...]:
    none = (False,) * x.ndim
    rows = zip(
        begin,
        end,
        stride or (1,) * x.ndim,
        begin_mask or none,
        end_mask or none,
        squeeze_mask or none,
        strict=True,
    )
    return tuple(
        first if squeezed else slice(None if open_begin else first, None if open_end else last, step)
        for first, last, step, open_begin, open_end, squeezed in rows
    )


def _backwards(part: slice, size: int) -> torch.Tensor:
    return torch.tensor(list(range(*part.indices(size))), dtype=torch.int64)


def _mirrored(part: slice | int, size: int) -> slice:
    assert isinstance(part, slice)
    positions = range(*part.indices(size))
    if not positions:
        return slice(0, 0)
    return slice(size - 1 - positions[0], size - positions[-1], -part.step)
