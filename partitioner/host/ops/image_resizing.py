"""Resizing of the last dimensions of images."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from partitioner.host.mil.model import Opset
from partitioner.host.registry import Ints, register_op

_Grid = Callable[[float, int], torch.Tensor]


def _steps(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float64)


def _strict_align_corners(size: float, count: int) -> torch.Tensor:
    return _steps(count) * ((size - 1) / (count - 1) if count > 1 else 0.0)


def _align_corners(size: float, count: int) -> torch.Tensor:
    return _strict_align_corners(size, count) if count > 1 else torch.tensor([(size - 1) / 2], dtype=torch.float64)


def _default(size: float, count: int) -> torch.Tensor:
    return _steps(count) * (size / count)


def _offset_corners(size: float, count: int) -> torch.Tensor:
    delta = max(1.0, size - 1) / count
    return (_steps(count) + 0.5) * delta


def _unalign_corners(size: float, count: int) -> torch.Tensor:
    return (_steps(count) + 0.5) * (size / count) - 0.5


SAMPLING_MODES: dict[str, _Grid] = {
    "ALIGN_CORNERS": _align_corners,
    "DEFAULT": _default,
    "OFFSET_CORNERS": _offset_corners,
    "STRICT_ALIGN_CORNERS": _strict_align_corners,
    "UNALIGN_CORNERS": _unalign_corners,
}
"""Where the samples of a dimension of ``size`` pixels lie, as the operation ``resize_bilinear`` documents it."""


def grid_points(size: float, count: int, sampling_mode: str) -> torch.Tensor:
    """Returns ``count`` positions in 0..size - 1, as float64.

    Raises:
        ValueError: The sampling mode is unknown.
    """
    if sampling_mode not in SAMPLING_MODES:
        raise ValueError(f"unknown sampling mode {sampling_mode!r}; choose one of {sorted(SAMPLING_MODES)}")
    return SAMPLING_MODES[sampling_mode](size, count).clamp(0, size - 1)


@register_op("upsample_nearest_neighbor", exact=True)
def upsample_nearest_neighbor(
    x: torch.Tensor, scale_factor_height: float = 1.0, scale_factor_width: float = 1.0
) -> torch.Tensor:
    """Returns the nearest pixel at each position of an image whose sides are scaled."""
    height, width = _scaled(x, scale_factor_height, scale_factor_width)
    return resize_nearest_neighbor(x, height, width)


@register_op("resize_nearest_neighbor", exact=True)
def resize_nearest_neighbor(x: torch.Tensor, target_size_height: int, target_size_width: int) -> torch.Tensor:
    """Returns the nearest pixel at each position of an image of another size."""
    for axis, count in ((-2, target_size_height), (-1, target_size_width)):
        source = torch.arange(count) * x.shape[axis] // count
        x = x.index_select(x.ndim + axis, source)
    return x


@register_op("upsample_bilinear")
def upsample_bilinear(
    x: torch.Tensor,
    scale_factor_height: float = 1.0,
    scale_factor_width: float = 1.0,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> torch.Tensor:
    """Returns the bilinear interpolation at each position of an image whose sides are scaled."""
    height, width = _scaled(x, scale_factor_height, scale_factor_width)
    centered = not align_corners if half_pixel_centers is None else half_pixel_centers
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if centered else "DEFAULT"
    return resize_bilinear(x, height, width, mode)


@register_op("resize_bilinear")
def resize_bilinear(
    x: torch.Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> torch.Tensor:
    """Returns the bilinear interpolation at each position of an image of another size."""
    target = (target_size_height, target_size_width)
    if x.ndim == 4 and x.is_floating_point() and sampling_mode in ("STRICT_ALIGN_CORNERS", "UNALIGN_CORNERS"):
        return F.interpolate(x, target, mode="bilinear", align_corners=sampling_mode == "STRICT_ALIGN_CORNERS")
    return _linear(_linear(x, -2, target[0], sampling_mode), -1, target[1], sampling_mode)


@register_op("resize", since=Opset.IOS17)
def resize(
    x: torch.Tensor,
    shape: Ints,
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> torch.Tensor:
    """Returns the last ``resized_dims`` dimensions resized to the last entries of ``shape``; 0 keeps a dimension."""
    for axis in range(-resized_dims, 0):
        count = shape[axis] or x.shape[axis]
        if interpolation_mode == "LINEAR":
            x = _linear(x, axis, count, sampling_mode)
        else:
            x = x.index_select(x.ndim + axis, _nearest(x.shape[axis], count, sampling_mode))
    return x


def _scaled(x: torch.Tensor, height: float, width: float) -> tuple[int, int]:
    # A factor such as 1.7 is stored rounded down; without the margin a size could lose its last pixel.
    return int(x.shape[-2] * height + 1e-4), int(x.shape[-1] * width + 1e-4)


def _nearest(size: int, count: int, sampling_mode: str) -> torch.Tensor:
    # Halfway positions go to the lower pixel, so that doubling repeats every pixel.
    points = grid_points(size, count, sampling_mode)
    return (points - 0.5).ceil().to(torch.int64)


def _linear(x: torch.Tensor, axis: int, count: int, sampling_mode: str) -> torch.Tensor:
    size = x.shape[axis]
    points = grid_points(size, count, sampling_mode)
    low = points.floor().to(torch.int64)
    high = (low + 1).clamp(max=size - 1)
    position = x.ndim + axis
    weight = (points - low).to(torch.float32).reshape(-1, *[1] * (-axis - 1))
    values = x if x.is_floating_point() else x.float()
    return torch.lerp(values.index_select(position, low), values.index_select(position, high), weight)
