"""Images at the boundary of a program."""

from typing import Any

import numpy as np
import torch

from partitioner.host.errors import InputError
from partitioner.host.mil.model import Feature

_MODES = {"RGB": "RGB", "BGR": "RGB", "GRAYSCALE": "L", "GRAYSCALE_FLOAT16": "F"}
"""Color layout -> PIL mode."""


def from_image(feature: Feature, given: Any) -> Any:
    """Returns a PIL image as a tensor of shape (1, channels, height, width).

    Raises:
        InputError: It is no PIL image, or the image's mode is not the declared color layout's.
    """
    mode = _MODES[feature.color or "RGB"]
    if not hasattr(given, "getbands"):
        raise InputError(
            f"input {feature.name!r} is an image: got a {type(given).__name__}, expected a PIL.Image of mode {mode}; "
            "make one with PIL.Image.fromarray, or pass pixels as a tensor to run"
        )
    if given.mode != mode:
        raise InputError(f"input {feature.name!r}: got an image of mode {given.mode}, expected {mode}")
    whole = feature.dtype is not None and not feature.dtype.is_float
    pixels = np.asarray(given, dtype=np.uint8 if whole else np.float32)
    pixels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    if feature.color == "BGR":
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels[None])


def to_image(feature: Feature, value: torch.Tensor) -> Any:
    """Returns an output of shape (1, channels, height, width) as a PIL image."""
    from PIL import Image

    pixels = value[0].float()
    if feature.color == "BGR":
        pixels = pixels.flip(0)
    if feature.color == "GRAYSCALE_FLOAT16":
        return Image.fromarray(pixels[0].numpy())
    levels = pixels.round().clamp(0, 255).to(torch.uint8)
    array = levels[0] if feature.color == "GRAYSCALE" else levels.permute(1, 2, 0)
    return Image.fromarray(array.contiguous().numpy())
