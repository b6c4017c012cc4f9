"""Pools."""

import torch
import torch.nn.functional as F

from partitioner.host.ops.windows import Pads, is_symmetric, resolve_pads, torch_padding
from partitioner.host.registry import Ints, register_op

_AVG = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@register_op("max_pool", exact=True)
def max_pool(
    x: torch.Tensor,
    kernel_sizes: Ints,
    pad_type: str = "valid",
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> torch.Tensor:
    """Returns the largest element of each window, padding excluded."""
    strides, pads = _windows(x, kernel_sizes, pad_type, strides, pad)
    padding = _torch_padding(pads, kernel_sizes)
    if padding is None:
        x, padding = F.pad(x, torch_padding(pads), value=-torch.inf), (0,) * len(pads)
    return _MAX[len(pads)](x, kernel_sizes, strides, padding, 1, ceil_mode)


@register_op("avg_pool")
def avg_pool(
    x: torch.Tensor,
    kernel_sizes: Ints,
    pad_type: str = "valid",
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
    exclude_padding_from_average: bool = False,
) -> torch.Tensor:
    """Returns the mean of each window; padding counts as zeros unless it is excluded."""
    strides, pads = _windows(x, kernel_sizes, pad_type, strides, pad)
    average, padding = _AVG[len(pads)], _torch_padding(pads, kernel_sizes)
    if padding is not None:
        return average(x, kernel_sizes, strides, padding, ceil_mode, not exclude_padding_from_average)
    result = average(F.pad(x, torch_padding(pads)), kernel_sizes, strides, 0, ceil_mode)
    if not exclude_padding_from_average:
        return result
    inside = F.pad(torch.ones_like(x[:1, :1]), torch_padding(pads))
    return result / average(inside, kernel_sizes, strides, 0, ceil_mode)


@register_op("l2_pool")
def l2_pool(
    x: torch.Tensor,
    kernel_sizes: Ints,
    pad_type: str = "valid",
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> torch.Tensor:
    """Returns the root of the sum of squares of each window."""
    strides, pads = _windows(x, kernel_sizes, pad_type, strides, pad)
    padded = F.pad(x.square(), torch_padding(pads))
    if len(pads) == 1:
        means = F.avg_pool2d(padded[:, :, None], (1, *kernel_sizes), (1, *strides), 0, ceil_mode, divisor_override=1)
        return means[:, :, 0].sqrt()
    return F.avg_pool2d(padded, kernel_sizes, strides, 0, ceil_mode, divisor_override=1).sqrt()


def _windows(
    x: torch.Tensor, kernel_sizes: Ints, pad_type: str, strides: Ints | None, pad: Ints | None
) -> tuple[Ints, Pads]:
    """Returns the steps of the window, and the padding of each spatial dimension."""
    steps = strides or (1,) * (x.ndim - 2)
    return steps, resolve_pads(pad_type, pad, x.shape[2:], kernel_sizes, steps)


def _torch_padding(pads: Pads, kernel_sizes: Ints) -> Ints | None:
    """Returns the padding as torch's pools take it, symmetric and at most half a window; None when it is not."""
    halves = all(2 * before <= size for (before, _), size in zip(pads, kernel_sizes, strict=True))
    return tuple(before for before, _ in pads) if halves and is_symmetric(pads) else None
