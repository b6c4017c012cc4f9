"""Rounding of a tensor to float16 numbers, unless that changes it too much."""

import torch

SMALLEST_HALF = 2.0**-24
"""The smallest positive number of float16, a subnormal one."""

_LARGEST_CHANGE = 2.0**-10
"""The largest change of an element that rounding to float16 may make, relative to the constant's largest element.

If an element would change more, the whole constant is not rounded; a tiny eps is an example. Elements outside the range
of float16, such as those of masks near finfo.min, are not rounded either.
"""


def rounded_to_half(value: torch.Tensor, negligible: bool = False) -> torch.Tensor:
    """Returns `value` rounded to float16, in its own dtype, or `value` itself if that would change it too much.

    Args:
        value: Any shape, float32 or float64.
        negligible: Whether it does not matter that small elements vanish.
    """
    half = value.to(torch.float16).to(value.dtype)
    half = torch.where(torch.isfinite(half), half, value)
    if negligible or value.numel() == 0:
        return half
    return half if (half - value).abs().max() <= _LARGEST_CHANGE * half.abs().max() else value
