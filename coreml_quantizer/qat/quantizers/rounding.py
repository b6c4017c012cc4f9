"""Fake quantization with straight-through gradients, fast on every device.

torch's own kernel is fused on a GPU but not vectorized on a CPU. There it takes 60 times as long as the four passes
over the values that this module makes.
"""

from typing import Any

import torch
from torch import Tensor

Interval = tuple[float, float]


def fake_quantize_tensor(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, clip: Interval | None = None
) -> Tensor:
    """Rounds `x` with one scale and zero point; gradients pass where nothing is clipped.

    Args:
        x: Floating-point tensor of any shape.
        scale: float32, one element.
        zero_point: int32, one element.
        quant_min: Smallest quantized value.
        quant_max: Largest quantized value.
        clip: Limits that `x` is clamped to first, as by a ReLU; this costs nothing on a CPU.

    Returns:
        `(clamp(round(x / scale) + zero_point, quant_min, quant_max) - zero_point) * scale`, as `x` in shape and dtype.
    """
    if x.is_cpu and x.dtype is torch.float32 and not torch.compiler.is_compiling():
        grid = _grid(scale.item(), int(zero_point.item()), quant_min, quant_max, clip)
        result: Tensor = _OnCpu.apply(x, *grid)  # type: ignore[no-untyped-call]
        return result
    clipped = x if clip is None else x.clamp(*clip)
    return torch.fake_quantize_per_tensor_affine(clipped, scale, zero_point, quant_min, quant_max)


def fake_quantize_channels(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int
) -> Tensor:
    """Does the same as `fake_quantize_tensor`, with `scale` and `zero_point` of shape (channels,) along `axis`."""
    if x.device.type != "cpu":
        return torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, quant_min, quant_max)
    shape = [1] * x.ndim
    shape[axis] = -1
    return fake_quantize_blocks(x, scale.reshape(shape), zero_point.reshape(shape), quant_min, quant_max)


def fake_quantize_blocks(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, clips: bool = True
) -> Tensor:
    """Does the same as `fake_quantize_tensor`, with `scale` and `zero_point` that broadcast against `x`.

    Scales may be negative.

    Args:
        x: Floating-point tensor of any shape.
        scale: Scales, of the dtype of `x`.
        zero_point: Zero points, integers of any dtype.
        quant_min: Smallest quantized value.
        quant_max: Largest quantized value.
        clips: Whether some value may need clipping; False saves work.
    """
    on_cpu = x.device.type == "cpu" and not torch.compiler.is_compiling()
    function = _BroadcastOnCpu if on_cpu else _Broadcast
    result: Tensor = function.apply(  # type: ignore[no-untyped-call]
        x, scale, zero_point.to(scale.dtype), quant_min, quant_max, clips
    )
    return result


def _grid(
    scale: float, zero_point: int, quant_min: int, quant_max: int, clip: Interval | None
) -> tuple[float, float, float, float, float]:
    """Returns the numbers that `_OnCpu` needs.

    They are the scale, the smallest and largest integer relative to the zero point, and the smallest and largest value
    whose gradients pass.
    """
    lowest, highest = float(quant_min - zero_point), float(quant_max - zero_point)
    low, high = (lowest - 0.5) * scale, (highest + 0.5) * scale
    if clip is not None:
        lowest, highest = max(lowest, round(clip[0] / scale)), min(highest, round(min(clip[1] / scale, highest)))
        low, high = max(low, clip[0]), min(high, clip[1])
    return scale, lowest, highest, low, high


class _OnCpu(torch.autograd.Function):
    """Fake quantization with one scale, float32, on a CPU: vectorized passes, one of them backward, without a mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, lowest: float, highest: float, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.low, ctx.high = low, high
        return x.mul(1.0 / scale).round_().clamp_(lowest, highest).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, x, ctx.low, ctx.high), None, None, None, None, None


class _Broadcast(torch.autograd.Function):
    """Fake quantization with scales and zero points that broadcast, on any device and under torch.compile."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, clips: bool
    ) -> Tensor:
        steps = torch.round(x * (1.0 / scale)) + zero_point
        clipped = steps.clamp(quant_min, quant_max)
        ctx.save_for_backward(clipped == steps)
        return (clipped - zero_point) * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return torch.where(inside, gradient, 0.0), None, None, None, None, None


class _BroadcastOnCpu(torch.autograd.Function):
    """The same in place, on a CPU.

    The backward pass computes again which values were clipped, if there may be any.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, clips: bool
    ) -> Tensor:
        ctx.limits = _limits(zero_point, quant_min, quant_max) if clips else None
        inverse = scale.reciprocal()
        steps = x.mul(inverse).round_()
        if clips:
            ctx.save_for_backward(x, inverse)
            steps.clamp_(*ctx.limits)
        return steps.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.limits is None:
            return gradient, None, None, None, None, None
        x, inverse = ctx.saved_tensors
        low, high = ctx.limits
        steps = x.mul(inverse)
        if isinstance(low, float):
            # Vectorized, which comparing and masking are not.
            passed = torch.ops.aten.hardtanh_backward(gradient, steps, low - 0.5, high + 0.5)
        else:
            steps.round_()
            passed = gradient.masked_fill(torch.ne(steps.clamp(low, high), steps), 0.0)
        return passed, None, None, None, None, None


def _limits(zero_point: Tensor, quant_min: int, quant_max: int) -> tuple[float, float] | tuple[Tensor, Tensor]:
    """Returns the smallest and largest integer relative to the zero point; numbers if all zero points are equal."""
    first = zero_point.flatten()[0]
    if zero_point.numel() == 1 or bool((zero_point == first).all()):
        return quant_min - first.item(), quant_max - first.item()
    return quant_min - zero_point, quant_max - zero_point
