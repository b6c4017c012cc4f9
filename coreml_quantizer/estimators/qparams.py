"""Computation of scale and zero point from a range, the same for every observer."""

import numpy as np
import torch
from torch import Tensor

from coreml_quantizer.specs import IntegerStorage, Scheme

SMALLEST_HALF_SCALE = 2.0**-20
"""The smallest scale that is rounded to float16.

Below it, neighbouring float16 numbers differ by more than 6 %, and a scale stays in float32.
"""

SMALLEST_SCALE = 2.0**-120
"""The smallest scale: it keeps the reciprocal of a scale finite in float32."""


def round_up_to_half(scale: Tensor) -> Tensor:
    """Returns the smallest float16 numbers not below `scale`, as float32.

    A Core ML program computes in float16. A scale that float16 cannot represent is rounded on the device, and then
    differs from the scale in PyTorch's graph: values near a rounding boundary are rounded to different steps. With a
    float16 scale, both use the same quantization grid. Rounding up never clips the range.

    Args:
        scale: Positive float32 scales of any shape. Those below 2**-20 or above 65504 are returned unchanged.
    """
    half = scale.to(torch.float16)
    too_small = half.to(torch.float32) < scale
    half = torch.where(too_small, torch.nextafter(half, torch.full_like(half, torch.inf)), half)
    representable = (scale >= SMALLEST_HALF_SCALE) & torch.isfinite(half)
    return torch.where(representable, half.to(torch.float32), scale)


def choose_qparams(minimum: Tensor, maximum: Tensor, storage: IntegerStorage, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Returns scale (float32) and zero point (int64) for values in `[minimum, maximum]`, in the shape of `minimum`.

    The range is widened to contain zero, so that zero is represented exactly. Symmetric: `scale = max|x| /
    ((quant_max - quant_min) / 2)`; affine: `scale = (max - min) / (quant_max - quant_min)`. A range that is exactly
    zero gets scale 1. The only lower limit on the scale is `SMALLEST_SCALE`, so tiny ranges keep their resolution.
    Source: Jacob et al. 2018, section 2.1, and coremltools' LinearQuantizer for the symmetric scale.
    """
    low = minimum.to(torch.float32).clamp(max=0.0)
    high = maximum.to(torch.float32).clamp(min=0.0)
    steps = float(storage.quant_max - storage.quant_min)
    scale = torch.maximum(-low, high) / (steps / 2) if scheme is Scheme.SYMMETRIC else (high - low) / steps
    # The difference of the largest float32 numbers overflows; that of their shares does not.
    scale = torch.where(torch.isinf(scale), high / steps - low / steps, scale)
    scale = torch.where(scale > 0, scale.clamp(min=SMALLEST_SCALE), torch.ones_like(scale))
    scale = round_up_to_half(scale)
    if scheme is Scheme.SYMMETRIC:
        return scale, torch.full_like(scale, storage.symmetric_zero_point, dtype=torch.int64)
    zero_point = storage.quant_min - torch.round(low / scale)
    return scale, zero_point.clamp(storage.quant_min, storage.quant_max).to(torch.int64)


def choose_qparams_on_cpu(
    minimum: Tensor, maximum: Tensor, storage: IntegerStorage, scheme: Scheme
) -> tuple[Tensor, Tensor]:
    """Returns what `choose_qparams` returns, bit for bit, for tensors on a CPU and at a fraction of its overhead.

    Training computes scale and zero point of every tensor at every step. There, twenty calls of torch on a few values
    cost more than rounding the tensor itself.
    """
    low = np.minimum(minimum.numpy(), _ZERO)
    high = np.maximum(maximum.numpy(), _ZERO)
    steps = np.float32(storage.quant_max - storage.quant_min)
    with np.errstate(all="ignore"):
        scale = np.maximum(-low, high) / (steps / _TWO) if scheme is Scheme.SYMMETRIC else (high - low) / steps
        if np.isinf(scale).any():
            scale = np.where(np.isinf(scale), high / steps - low / steps, scale)
        scale = np.where(scale == _ZERO, _ONE, np.maximum(scale, np.float32(SMALLEST_SCALE)))
        half = scale.astype(np.float16)
        half = np.where(half < scale, np.nextafter(half, _INFINITE_HALF), half)
        usable = (scale >= SMALLEST_HALF_SCALE) & (half < _INFINITE_HALF)
        scale = np.where(usable, half.astype(np.float32), scale)
        if scheme is Scheme.SYMMETRIC:
            zero_point = np.full(scale.shape, storage.symmetric_zero_point, np.int64)
        else:
            shift = storage.quant_min - np.rint(low / scale)
            zero_point = np.minimum(np.maximum(shift, storage.quant_min), storage.quant_max).astype(np.int64)
    return torch.from_numpy(np.asarray(scale)), torch.from_numpy(np.asarray(zero_point))


_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
_INFINITE_HALF = np.float16(np.inf)
