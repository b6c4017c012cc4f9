"""Crops of images."""

import torch

from partitioner.host.mil.model import Opset
from partitioner.host.ops.image_resizing import grid_points
from partitioner.host.registry import Ints, register_op


@register_op("crop", exact=True)
def crop(x: torch.Tensor, crop_height: Ints, crop_width: Ints) -> torch.Tensor:
    """Returns the last two dimensions without some pixels on each side."""
    height, width = x.shape[-2:]
    return x[..., crop_height[0] : height - crop_height[1], crop_width[0] : width - crop_width[1]]


@register_op("crop_resize")
def crop_resize(
    x: torch.Tensor,
    roi: torch.Tensor,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> torch.Tensor:
    """Returns resized boxes of every image, or of the image that a box names: (N, B or 1, C, height, width)."""
    rows = roi.reshape(roi.shape[0], -1)
    boxes = _corners(rows[:, -4:], x, box_coordinate_mode, normalized_coordinates, spatial_scale)
    target = (target_height, target_width)
    named = rows.shape[1] == 5
    crops = [
        _crop(x[int(row[0])][None] if named else x, box, target, sampling_mode, pad_value)
        for row, box in zip(rows, boxes, strict=True)
    ]
    return torch.stack(crops)


@register_op("crop_resize", since=Opset.IOS17)
def crop_resize_by_index(
    x: torch.Tensor,
    boxes: torch.Tensor,
    box_indices: Ints | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> torch.Tensor:
    """Returns resized boxes, each of one image: (N, C, height, width)."""
    corners = _corners(boxes, x, box_coordinate_mode, normalized_coordinates, spatial_scale)
    images = range(len(corners)) if box_indices is None else box_indices
    target = (target_height, target_width)
    crops = [
        _crop(x[image][None], box, target, sampling_mode, pad_value)[0]
        for image, box in zip(images, corners, strict=True)
    ]
    return torch.stack(crops)


def _corners(
    boxes: torch.Tensor, x: torch.Tensor, mode: str, normalized: bool, spatial_scale: float
) -> list[tuple[float, float, float, float]]:
    """Returns boxes as top, left, bottom, right in pixels."""
    values = boxes.to(torch.float64)
    if mode.endswith("WIDTH_FIRST"):
        values = values[:, [1, 0, 3, 2]]
    first, second = values[:, :2], values[:, 2:]
    if mode.startswith("CENTER_SIZE"):
        first, second = first - second / 2, first + second / 2
    scale = spatial_scale * (torch.tensor(x.shape[-2:], dtype=torch.float64) - 1 if normalized else 1.0)
    rows = torch.cat((first * scale, second * scale), 1)
    return [(top, left, bottom, right) for top, left, bottom, right in rows.tolist()]


def _crop(
    images: torch.Tensor,
    box: tuple[float, float, float, float],
    target: tuple[int, int],
    sampling_mode: str,
    pad_value: float,
) -> torch.Tensor:
    top, left, bottom, right = box
    rows = _positions(top, bottom, target[0], sampling_mode)
    columns = _positions(left, right, target[1], sampling_mode)
    values = _sample(_sample(images, -2, rows), -1, columns)
    inside = _inside(rows, images.shape[-2])[:, None] & _inside(columns, images.shape[-1])
    return torch.where(inside, values, pad_value)


def _positions(start: float, end: float, count: int, sampling_mode: str) -> torch.Tensor:
    points = grid_points(abs(end - start) + 1, count, sampling_mode)
    return start + points if end >= start else start - points


def _inside(positions: torch.Tensor, size: int) -> torch.Tensor:
    return (positions >= 0) & (positions <= size - 1)


def _sample(x: torch.Tensor, axis: int, positions: torch.Tensor) -> torch.Tensor:
    size = x.shape[axis]
    points = positions.clamp(0, size - 1)
    low = points.floor().to(torch.int64)
    high = (low + 1).clamp(max=size - 1)
    weight = (points - low).to(torch.float32).reshape(-1, *[1] * (-axis - 1))
    values = x if x.is_floating_point() else x.float()
    return torch.lerp(values.index_select(x.ndim + axis, low), values.index_select(x.ndim + axis, high), weight)
