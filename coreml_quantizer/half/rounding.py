"""The float16 numbers nearest to float32 ones, where that changes little."""

import torch

SMALLEST_HALF = 2.0**-24
"""The smallest positive number of float16, a subnormal one."""

_LARGEST_CHANGE = 2.0**-10
"""The largest change by rounding to float16, relative to the largest element of a constant.

A constant that would change more, such as a tiny eps, is not rounded. Single elements outside the range of float16,
such as masks near finfo.min, are not rounded either."""


def rounded_to_half(value: torch.Tensor, negligible: bool = False) -> torch.Tensor:
    """Returns `value` rounded to float16, in its own dtype, or `value` itself where too much would change.

    Args:
        value: Any shape, float32 or float64.
        negligible: Whether it does not matter that small elements vanish.
    """
    half = value.to(torch.float16).to(value.dtype)
    half = torch.where(torch.isfinite(half), half, value)
    if negligible or value.numel() == 0:
        return half
    return half if (half - value).abs().max() <= _LARGEST_CHANGE * half.abs().max() else value
