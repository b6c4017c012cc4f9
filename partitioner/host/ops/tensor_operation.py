"""Operations that build, repeat, order or pad tensors."""

import torch
import torch.nn.functional as F

from partitioner.host.mil.dtypes import BY_NAME, INT32
from partitioner.host.mil.model import Opset
from partitioner.host.mil.types import TensorType
from partitioner.host.registry import Ints, Outputs, Tensors, register_op


@register_op("shape", exact=True)
def shape(x: torch.Tensor) -> torch.Tensor:
    """Returns the sizes of the dimensions."""
    return torch.tensor(x.shape, dtype=INT32.compute)


@register_op("fill")
def fill(shape: Ints, outputs: Outputs, value: torch.Tensor | None = None) -> torch.Tensor:
    """Returns a tensor filled with one value."""
    return torch.full(shape, 0 if value is None else value.item(), dtype=_dtype(outputs))


@register_op("fill_like", since=Opset.IOS16)
def fill_like(ref_tensor: torch.Tensor, outputs: Outputs, value: torch.Tensor | None = None) -> torch.Tensor:
    """Returns a tensor of the reference's shape filled with one value."""
    return fill(tuple(ref_tensor.shape), outputs, value)


@register_op("range_1d")
def range_1d(end: torch.Tensor, start: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Returns numbers from start, exclusive of end, step apart."""
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


@register_op("tile", exact=True)
def tile(x: torch.Tensor, reps: Ints) -> torch.Tensor:
    """Returns x repeated along each dimension."""
    return x.repeat(reps)


@register_op("one_hot")
def one_hot(
    indices: torch.Tensor,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: torch.Tensor | None = None,
    off_value: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns vectors that hold ``on_value`` (1) at the index and ``off_value`` (0) elsewhere in a new dimension."""
    on = torch.tensor(1, dtype=INT32.compute) if on_value is None else on_value
    off = torch.zeros_like(on) if off_value is None else off_value
    position = axis % (indices.ndim + 1)
    steps = torch.arange(one_hot_vector_size).reshape(-1, *[1] * (indices.ndim - position))
    return torch.where(indices.to(torch.int64).unsqueeze(position) == steps, on, off)


@register_op("pad", exact=True)
def pad(x: torch.Tensor, pad: Ints, mode: str = "constant", constant_val: torch.Tensor | None = None) -> torch.Tensor:
    """Pads the last ``len(pad) / 2`` dimensions before and after, by a constant, by reflection or by the edge."""
    pairs = list(zip(pad[::2], pad[1::2], strict=True))
    if mode == "constant":
        value = 0 if constant_val is None else constant_val.item()
        return F.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=value)
    first = x.ndim - len(pairs)
    for axis, (before, after) in enumerate(pairs, start=first):
        if before or after:
            x = x.index_select(axis, _pad_sources(x.shape[axis], before, after, mode))
    return x


@register_op("cumsum")
def cumsum(x: torch.Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> torch.Tensor:
    """Returns the running sum along an axis; without the element itself, or from the end, when asked for."""
    ordered = torch.flip(x, (axis,)) if reverse else x
    result = torch.cumsum(ordered, axis, dtype=x.dtype)
    if exclusive:
        result = result - ordered
    return torch.flip(result, (axis,)) if reverse else result


@register_op("band_part", exact=True)
def band_part(x: torch.Tensor, lower: int = -1, upper: int = -1) -> torch.Tensor:
    """Returns zeros outside a band around the diagonal of the last two dimensions; a negative width keeps a side."""
    rows, columns = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])
    outside = torch.zeros((), dtype=torch.bool)
    if lower >= 0:
        outside = outside | (rows - columns > lower)
    if upper >= 0:
        outside = outside | (columns - rows > upper)
    return x.masked_fill(outside, 0)


@register_op("non_zero", exact=True)
def non_zero(x: torch.Tensor) -> torch.Tensor:
    """Returns the indices of the elements that are not zero, one row each."""
    return torch.nonzero(x).to(INT32.compute)


@register_op("argsort", exact=True)
def argsort(x: torch.Tensor, axis: int = -1, ascending: bool = False) -> torch.Tensor:
    """Returns the indices that sort along an axis; equal elements keep their order."""
    return torch.sort(x, dim=axis, descending=not ascending, stable=True).indices.to(INT32.compute)


@register_op("topk", exact=True)
def topk(
    x: torch.Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> torch.Tensor | Tensors:
    """Returns the k largest elements (smallest when ascending) along an axis, and their indices."""
    count = x.shape[axis] if k == -1 else k
    del sort  # no order is promised without it, so sorted is right too
    ordered = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    values = ordered.values.narrow(axis, 0, count)
    if not return_indices:
        return values
    return values, ordered.indices.narrow(axis, 0, count).to(BY_NAME[output_indices_dtype].compute)


def _dtype(outputs: Outputs) -> torch.dtype:
    declared = outputs[0]
    assert isinstance(declared, TensorType)
    return declared.dtype.compute


def _pad_sources(size: int, before: int, after: int, mode: str) -> torch.Tensor:
    positions = torch.arange(-before, size + after)
    if mode == "replicate":
        return positions.clamp(0, size - 1)
    if mode == "reflect":
        mirrored = positions.abs()
        return torch.where(mirrored > size - 1, 2 * (size - 1) - mirrored, mirrored)
    raise ValueError(f"unknown pad mode {mode!r}; choose constant, reflect or replicate")
