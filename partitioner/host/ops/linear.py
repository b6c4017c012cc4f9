"""Matrix products and attention."""

import torch
import torch.nn.functional as F

from partitioner.host.mil.model import Opset
from partitioner.host.registry import Tensors, register_op


@register_op("linear")
def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Returns x @ weight.T + bias, with a weight of (outputs, inputs)."""
    if weight.dtype == x.dtype:
        return F.linear(x, weight, bias)
    # Integer weights are allowed beside float inputs.
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


@register_op("matmul")
def matmul(x: torch.Tensor, y: torch.Tensor, transpose_x: bool = False, transpose_y: bool = False) -> torch.Tensor:
    """Returns the matrix product with broadcast leading dimensions; vectors are promoted as in numpy."""
    left = x.transpose(-1, -2) if transpose_x and x.ndim > 1 else x
    right = y.transpose(-1, -2) if transpose_y and y.ndim > 1 else y
    common = torch.promote_types(left.dtype, right.dtype)
    return torch.matmul(left.to(common), right.to(common))


@register_op("einsum")
def einsum(values: Tensors, equation: str) -> torch.Tensor:
    """Returns the Einstein summation."""
    return torch.einsum(equation, *values)


@register_op("scaled_dot_product_attention", since=Opset.IOS18)
def scaled_dot_product_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns softmax(query @ key.T / sqrt(E) + mask) @ value; a key takes part where a bool mask is true."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask)
