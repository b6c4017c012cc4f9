"""Gathers and scatters."""

from collections.abc import Callable

import torch

from partitioner.host.registry import register_op


@register_op("gather", exact=True)
def gather(
    x: torch.Tensor, indices: torch.Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> torch.Tensor:
    """Returns slices of x along ``axis``; the first ``batch_dims`` dimensions of x and indices go together."""
    axis %= x.ndim
    index = _wrapped(indices, x.shape[axis], validate_indices)
    if batch_dims == 0:
        return x.index_select(axis, index.flatten()).reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])
    return _by_batch(lambda row, chosen: gather(row, chosen, axis - batch_dims), x, index, batch_dims)


@register_op("gather_along_axis", exact=True)
def gather_along_axis(
    x: torch.Tensor, indices: torch.Tensor, axis: int = 0, validate_indices: bool = False
) -> torch.Tensor:
    """Returns elements of x along ``axis``, one index per result element; other dimensions broadcast."""
    axis %= x.ndim
    index = _wrapped(indices, x.shape[axis], validate_indices)
    shape = [max(a, b) for a, b in zip(x.shape, index.shape, strict=True)]
    source = x.expand(*shape[:axis], x.shape[axis], *shape[axis + 1 :])
    return source.gather(axis, index.expand(*shape[:axis], index.shape[axis], *shape[axis + 1 :]))


@register_op("gather_nd", exact=True)
def gather_nd(
    x: torch.Tensor, indices: torch.Tensor, batch_dims: int = 0, validate_indices: bool = False
) -> torch.Tensor:
    """Returns slices of x at index vectors, which the last dimension of ``indices`` holds."""
    if batch_dims == 0:
        return x[_coordinates(x, indices, validate_indices)]
    return _by_batch(lambda row, chosen: row[_coordinates(row, chosen, validate_indices)], x, indices, batch_dims)


def _by_batch(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], x: torch.Tensor, indices: torch.Tensor, count: int
) -> torch.Tensor:
    """Applies a function of both to each entry of their first ``count`` dimensions."""
    rows = zip(x.flatten(0, count - 1), indices.flatten(0, count - 1), strict=True)
    parts = [function(row, chosen) for row, chosen in rows]
    return torch.stack(parts).reshape(x.shape[:count] + parts[0].shape)


_Combine = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_COMBINATIONS: dict[str, _Combine] = {
    "div": torch.div,
    "max": torch.maximum,
    "min": torch.minimum,
    "mul": torch.mul,
}


@register_op("scatter")
def scatter(
    data: torch.Tensor,
    indices: torch.Tensor,
    updates: torch.Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> torch.Tensor:
    """Returns data with the slices at ``indices`` along ``axis`` combined with updates."""
    axis %= data.ndim
    index = _wrapped(indices, data.shape[axis], validate_indices).flatten()
    moved = updates.flatten(axis, axis + indices.ndim - 1) if indices.ndim else updates.unsqueeze(axis)
    return _combine(data.movedim(axis, 0), (index,), moved.movedim(axis, 0), mode).movedim(0, axis)


@register_op("scatter_along_axis")
def scatter_along_axis(
    data: torch.Tensor,
    indices: torch.Tensor,
    updates: torch.Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> torch.Tensor:
    """Returns data with the elements at ``indices`` along ``axis``, one per update, combined with updates."""
    axis %= data.ndim
    index = list(torch.meshgrid(*[torch.arange(size) for size in indices.shape], indexing="ij"))
    index[axis] = _wrapped(indices, data.shape[axis], validate_indices)
    return _combine(data, tuple(index), updates, mode)


@register_op("scatter_nd")
def scatter_nd(
    data: torch.Tensor,
    indices: torch.Tensor,
    updates: torch.Tensor,
    mode: str = "add",
    validate_indices: bool = False,
) -> torch.Tensor:
    """Returns data with the slices at index vectors combined with updates."""
    return _combine(data, _coordinates(data, indices, validate_indices), updates, mode)


def _wrapped(indices: torch.Tensor, size: int, validate: bool) -> torch.Tensor:
    """Returns indices counted from the front. Negative ones are an error if they are to be validated."""
    index = indices.to(torch.int64)
    if validate and bool((index < 0).any()):
        raise IndexError(f"index {int(index.min())} is negative and the operation validates its indices")
    return torch.where(index < 0, index + size, index)


def _coordinates(x: torch.Tensor, indices: torch.Tensor, validate: bool) -> tuple[torch.Tensor, ...]:
    return tuple(_wrapped(part, size, validate) for part, size in zip(indices.unbind(-1), x.shape, strict=False))


def _combine(data: torch.Tensor, index: tuple[torch.Tensor, ...], updates: torch.Tensor, mode: str) -> torch.Tensor:
    result = data.clone()
    target = result[index].shape
    values = updates.to(data.dtype).expand(target)
    if mode == "update":
        return result.index_put_(index, values)
    if mode in ("add", "sub"):
        return result.index_put_(index, values if mode == "add" else -values, accumulate=True)
    if mode not in _COMBINATIONS:
        raise ValueError(f"unknown scatter mode {mode!r}; choose add, sub, update, {', '.join(_COMBINATIONS)}")
    # Repeated indices combine one after another.
    count = index[0].numel()
    flat = [part.reshape(-1) for part in index]
    rows = values.reshape(count, *target[index[0].ndim :])
    for position in range(count):
        where = tuple(part[position] for part in flat)
        result[where] = _COMBINATIONS[mode](result[where], rows[position]).to(data.dtype)
    return result
