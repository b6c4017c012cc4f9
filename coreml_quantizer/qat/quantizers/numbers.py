"""Ranges, scales and zero points as Python numbers and numpy arrays, on a CPU.

Training computes the scale and zero point of every tensor at every step. On a handful of values, one call of torch
costs as much as twenty operations on numbers or three calls of numpy. Numbers are doubles that are rounded to float32
after each operation. The result is that of float32 arithmetic, because a double has more than twice as many digits.
"""

import math
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from coreml_quantizer.estimators import MinMaxObserver, RangeObserver
from coreml_quantizer.estimators.base import channels_first
from coreml_quantizer.estimators.qparams import SMALLEST_HALF_SCALE, SMALLEST_SCALE, choose_qparams_on_cpu
from coreml_quantizer.specs import IntegerStorage, Scheme

_LARGEST_HALF = torch.finfo(torch.float16).max
_LARGEST_SINGLE = 3.4028234663852886e38

Singles = npt.NDArray[np.float32]


def eager_on_cpu(x: Tensor) -> bool:
    """Returns whether `x` is on a CPU in eager mode, so that its values can be read without waiting."""
    return x.is_cpu and not torch.compiler.is_compiling()


def extremes_on_cpu(x: Tensor, ch_axis: int) -> tuple[Tensor, Tensor]:
    """Returns the same smallest and largest values as `estimators.extremes`.

    amin and amax are vectorized on a CPU: together 1.5 times as fast as aminmax, and 15 times per channel.
    """
    if ch_axis < 0:
        return torch.amin(x), torch.amax(x)
    rows = channels_first(x, ch_axis)
    return torch.amin(rows, 1), torch.amax(rows, 1)


def single(value: float) -> float:
    """Returns the nearest float32 number; infinity for a value outside the range of float32."""
    if not -_LARGEST_SINGLE <= value <= _LARGEST_SINGLE:
        return value if math.isnan(value) else math.copysign(math.inf, value)
    return float(struct.unpack("f", struct.pack("f", value))[0])


def move_range(observer: RangeObserver, low: float, high: float) -> tuple[float, float]:
    """Moves the range of a min-max or moving-average observer of a whole tensor, and returns it."""
    old_low, old_high = observer.min_val.item(), observer.max_val.item()
    if old_low <= old_high:
        if isinstance(observer, MinMaxObserver):
            low, high = min(low, old_low), max(high, old_high)
        else:
            momentum = single(observer.momentum)
            low = single(old_low + single(momentum * single(low - old_low)))
            high = single(old_high + single(momentum * single(high - old_high)))
    observer.min_val.fill_(low)
    observer.max_val.fill_(high)
    return low, high


def move_ranges(observer: RangeObserver, low: Singles, high: Singles) -> tuple[Singles, Singles]:
    """Does the same as `move_range` for one range per channel; returns the observer's own arrays, not copies."""
    old_low, old_high = observer.min_val.numpy(), observer.max_val.numpy()
    if not old_low[0] <= old_high[0]:
        old_low[:], old_high[:] = low, high
    elif isinstance(observer, MinMaxObserver):
        np.minimum(old_low, low, out=old_low)
        np.maximum(old_high, high, out=old_high)
    else:
        momentum = np.float32(observer.momentum)
        old_low += momentum * (low - old_low)
        old_high += momentum * (high - old_high)
    return old_low, old_high


def choose_grid(low: float, high: float, storage: IntegerStorage, scheme: Scheme) -> tuple[float, int]:
    """Returns scale and zero point for one range, equal bit for bit to those of `estimators.qparams.choose_qparams`.

    Args:
        low: Smallest value, a finite float32 number.
        high: Largest value, a finite float32 number.
        storage: The integer type.
        scheme: Whether zero is in the middle of the integers.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    steps = storage.quant_max - storage.quant_min
    if scheme is Scheme.SYMMETRIC:
        return _usable(single(max(-low, high) / (steps / 2))), storage.symmetric_zero_point
    scale = _usable(single(single(high - low) / steps))
    zero_point = storage.quant_min - round(single(low / scale))
    return scale, min(max(zero_point, storage.quant_min), storage.quant_max)


def _usable(scale: float) -> float:
    """Returns `scale` rounded up to a float16 number where float16 is fine enough, and 1 for zero."""
    if scale == 0.0:
        return 1.0
    scale = max(scale, SMALLEST_SCALE)
    if not SMALLEST_HALF_SCALE <= scale <= _LARGEST_HALF:
        return scale
    (bits,) = struct.unpack("H", struct.pack("e", scale))
    (half,) = struct.unpack("e", struct.pack("e", scale))
    if half < scale:
        (half,) = struct.unpack("e", struct.pack("H", bits + 1))
    return float(half)


def choose_grids(low: Singles, high: Singles, storage: IntegerStorage, scheme: Scheme) -> tuple[Singles, Any]:
    """Returns scales and zero points, equal bit for bit to those of `estimators.qparams.choose_qparams`.

    There is one range per channel.

    Returns:
        Scales, and zero points as an array of int64, or as one number where all are the same.
    """
    if scheme is Scheme.SYMMETRIC:
        steps = storage.quant_max - storage.quant_min
        scale = np.maximum(-low, high) / np.float32(steps / 2)
        if scale.min() >= SMALLEST_HALF_SCALE and scale.max() <= _LARGEST_HALF:
            half = scale.astype(np.float16)
            # The next float16 number, of a positive one.
            half.view(np.uint16)[:] += half < scale
            return half.astype(np.float32), storage.symmetric_zero_point
    scales, zero_points = choose_qparams_on_cpu(torch.from_numpy(low), torch.from_numpy(high), storage, scheme)
    return scales.numpy(), zero_points.numpy()
