"""Padding rules that convolutions and pools share."""

from collections.abc import Sequence
from typing import TypeAlias

Pads: TypeAlias = tuple[tuple[int, int], ...]


def resolve_pads(
    pad_type: str,
    pad: Sequence[int] | None,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
) -> Pads:
    """Returns the padding before and after each spatial dimension.

    Args:
        pad_type: ``"valid"``, ``"custom"``, ``"same"`` or ``"same_lower"``.
        pad: For ``"custom"``: before and after the first dimension, before and after the second, and so on.
        sizes: Spatial sizes of the input.
        kernel: Sizes of the window, dilation included.
        strides: Steps of the window.

    Raises:
        ValueError: ``pad_type`` is unknown.
    """
    kind = pad_type.lower()
    if kind == "valid":
        return tuple((0, 0) for _ in sizes)
    if kind == "custom":
        given = tuple(pad or (0,) * (2 * len(sizes)))
        return tuple(zip(given[::2], given[1::2], strict=True))
    if kind not in ("same", "same_lower"):
        raise ValueError(f"unknown pad_type {pad_type!r}; choose valid, custom, same or same_lower")
    totals = [
        max(0, -(-size // stride) * stride - size + extent - stride)
        for size, extent, stride in zip(sizes, kernel, strides, strict=True)
    ]
    halves = [(total // 2, total - total // 2) for total in totals]
    return tuple(halves if kind == "same" else [(after, before) for before, after in halves])


def is_symmetric(pads: Pads) -> bool:
    """Returns whether every dimension is padded equally on both sides."""
    return all(before == after for before, after in pads)


def torch_padding(pads: Pads) -> list[int]:
    """Returns the same padding as `torch.nn.functional.pad` takes it: last dimension first."""
    return [amount for pair in reversed(pads) for amount in pair]


def dilated(kernel: Sequence[int], dilations: Sequence[int]) -> tuple[int, ...]:
    """Returns the extent of a kernel whose elements are ``dilations`` apart."""
    return tuple((size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True))
