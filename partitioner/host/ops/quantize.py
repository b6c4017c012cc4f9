"""Quantization of activations."""

import torch

from partitioner.host.mil.dtypes import BY_NAME
from partitioner.host.mil.model import Opset
from partitioner.host.registry import register_op


@register_op("quantize", since=Opset.IOS17, exact=True)
def quantize(
    input: torch.Tensor,
    scale: torch.Tensor,
    output_dtype: str,
    zero_point: torch.Tensor | None = None,
    axis: int | None = None,
) -> torch.Tensor:
    """Returns clamp(round(input / scale) + zero_point), in the range of the output type; ties round to even.

    The quotient is computed as PyTorch's quantize_per_tensor computes it: a product with the float32 reciprocal of the
    scale. The operation's definition does not say, and values that lie on a tie (a sum of two quantized values often
    does) then go where they go in the converted graph.
    """
    dtype = BY_NAME[output_dtype].compute
    limits = torch.iinfo(dtype)
    levels = torch.mul(input, _along(scale.reciprocal(), input, axis)).round_()
    if zero_point is not None:
        levels = levels.add_(_along(zero_point, input, axis))
    return levels.clamp_(limits.min, limits.max).to(dtype)


@register_op("dequantize", since=Opset.IOS17)
def dequantize(
    input: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None = None,
    axis: int | None = None,
) -> torch.Tensor:
    """Returns scale * (input - zero_point)."""
    values = input.to(scale.dtype)
    if zero_point is not None:
        values = values.sub_(_along(zero_point, input, axis))
    return values.mul_(_along(scale, input, axis))


def _along(parameter: torch.Tensor, data: torch.Tensor, axis: int | None) -> torch.Tensor:
    if parameter.ndim == 0 or axis is None:
        return parameter
    shape = [1] * data.ndim
    shape[axis] = -1
    return parameter.reshape(shape)
