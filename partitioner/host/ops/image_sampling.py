"""Sampling of images at coordinates."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from partitioner.host.registry import register_op

_Fold = Callable[[torch.Tensor, int], torch.Tensor]


def _border(position: torch.Tensor, size: int) -> torch.Tensor:
    return position.clamp(0, size - 1)


def _reflection(position: torch.Tensor, size: int) -> torch.Tensor:
    if size == 1:
        return torch.zeros_like(position)
    folded = torch.remainder(position, 2 * (size - 1))
    return torch.minimum(folded, 2 * (size - 1) - folded)


def _symmetric(position: torch.Tensor, size: int) -> torch.Tensor:
    folded = torch.remainder(position + 0.5, 2 * size)
    return (torch.minimum(folded, 2 * size - folded) - 0.5).clamp(0, size - 1)


_FOLDS: dict[str, _Fold] = {
    "border": _border,
    "constant": lambda position, size: position,
    "reflection": _reflection,
    "symmetric": _symmetric,
}
"""Padding mode -> the position inside the image that stands for one outside."""


@register_op("resample")
def resample(
    x: torch.Tensor,
    coordinates: torch.Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> torch.Tensor:
    """Returns the pixels of (B, C, H, W) at coordinates (B, H2, W2, 2) in the order x, y."""
    points = coordinates.to(torch.float32)
    columns = _pixels(points[..., 0], x.shape[-1], coordinates_mode, align_corners)
    rows = _pixels(points[..., 1], x.shape[-2], coordinates_mode, align_corners)
    if padding_mode not in _FOLDS:
        raise ValueError(f"unknown padding mode {padding_mode!r}; choose one of {sorted(_FOLDS)}")
    rows, columns = _FOLDS[padding_mode](rows, x.shape[-2]), _FOLDS[padding_mode](columns, x.shape[-1])
    if sampling_mode == "nearest":
        return _pick(x, rows.round(), columns.round(), padding_mode, padding_value)
    top, left = rows.floor(), columns.floor()
    down, right = (rows - top)[:, None], (columns - left)[:, None]
    corners = [[_pick(x, top + dy, left + dx, padding_mode, padding_value) for dx in (0, 1)] for dy in (0, 1)]
    upper = corners[0][0] * (1 - right) + corners[0][1] * right
    lower = corners[1][0] * (1 - right) + corners[1][1] * right
    return upper * (1 - down) + lower * down


@register_op("affine")
def affine(
    x: torch.Tensor,
    transform_matrix: torch.Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> torch.Tensor:
    """Returns pixels at the affine transforms of the output's coordinates; a matrix is a0, a1, a2, b0, b1, b2."""
    matrices = transform_matrix.reshape(-1, 2, 3).expand(x.shape[0], 2, 3)
    size = [x.shape[0], x.shape[1], output_height, output_width]
    grid = F.affine_grid(matrices, size, align_corners)
    return resample(x, grid, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners)


def _pixels(points: torch.Tensor, size: int, mode: str, align_corners: bool) -> torch.Tensor:
    if mode == "unnormalized":
        return points
    unit = points if mode == "normalized_zero_to_one" else (points + 1) / 2
    return unit * (size - 1) if align_corners else unit * size - 0.5


def _pick(
    x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, padding_mode: str, padding_value: float
) -> torch.Tensor:
    """Returns the pixels (B, C, H2, W2) at whole rows and columns (B, H2, W2)."""
    height, width = x.shape[-2:]
    row, column = rows.to(torch.int64), columns.to(torch.int64)
    source = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    index = source.flatten(1)[:, None].expand(-1, x.shape[1], -1)
    values = x.flatten(2).gather(2, index).reshape(*x.shape[:2], *rows.shape[1:])
    if padding_mode != "constant":
        return values
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return torch.where(inside[:, None], values, padding_value)
