"""Fake quantization with straight-through gradients, fast on every device.

torch's own kernel is fused on a GPU but not vectorized on a CPU, where it costs 60 times as much as quantizing and
dequantizing in two steps.
"""

from typing import Any

import torch
from torch import Tensor

_WHOLE_BYTE = {(0, 255): torch.quint8, (-128, 127): torch.qint8}


def fake_quantize_tensor(x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """Rounds `x` to the grid of one scale and zero point, and passes gradients where it does not clip.

    Args:
        x: Floating-point tensor of any shape.
        scale: float32, one element.
        zero_point: int32, one element.
        quant_min: Smallest quantized value.
        quant_max: Largest quantized value.

    Returns:
        `(clamp(round(x / scale) + zero_point, quant_min, quant_max) - zero_point) * scale`, as `x` in shape and dtype.
    """
    if x.device.type == "cpu" and x.dtype is torch.float32 and not torch.compiler.is_compiling():
        result: Tensor = _OnCpu.apply(x, scale.item(), int(zero_point.item()), quant_min, quant_max)  # type: ignore[no-untyped-call]
        return result
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, quant_min, quant_max)


def fake_quantize_channels(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int
) -> Tensor:
    """As `fake_quantize_tensor`, with `scale` and `zero_point` of shape (channels,) along `axis`."""
    if x.device.type != "cpu":
        return torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, quant_min, quant_max)
    shape = [1] * x.ndim
    shape[axis] = -1
    return fake_quantize_blocks(x, scale.reshape(shape), zero_point.reshape(shape), quant_min, quant_max)


def fake_quantize_blocks(x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """As `fake_quantize_tensor`, with `scale` and `zero_point` that broadcast against `x`."""
    result: Tensor = _Broadcast.apply(  # type: ignore[no-untyped-call]
        x, scale, zero_point.to(scale.dtype), quant_min, quant_max
    )
    return result


class _OnCpu(torch.autograd.Function):
    """One scale, float32, CPU: two vectorized passes forward, one backward, and no mask in memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.low = (quant_min - zero_point - 0.5) * scale
        ctx.high = (quant_max - zero_point + 0.5) * scale
        quantized_dtype = _WHOLE_BYTE.get((quant_min, quant_max))
        if quantized_dtype is not None:
            return torch.quantize_per_tensor(x, scale, zero_point, quantized_dtype).dequantize()
        steps = x.mul(1.0 / scale).round_().clamp_(quant_min - zero_point, quant_max - zero_point)
        return steps.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, x, ctx.low, ctx.high), None, None, None, None


class _Broadcast(torch.autograd.Function):
    """Scales and zero points that broadcast; any device, and torch.compile."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
        steps = torch.round(x * (1.0 / scale)) + zero_point
        clipped = steps.clamp(quant_min, quant_max)
        ctx.save_for_backward(clipped == steps)
        return (clipped - zero_point) * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None, None
