"""Normalizations."""

import torch
import torch.nn.functional as F

from partitioner.host.registry import Ints, register_op


@register_op("batch_norm")
def batch_norm(
    x: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    gamma: torch.Tensor | None = None,
    beta: torch.Tensor | None = None,
    epsilon: float = 1e-5,
) -> torch.Tensor:
    """Normalizes by stored statistics per channel (dimension 1)."""
    return F.batch_norm(x, mean, variance, gamma, beta, training=False, eps=epsilon)


@register_op("instance_norm")
def instance_norm(
    x: torch.Tensor, gamma: torch.Tensor | None = None, beta: torch.Tensor | None = None, epsilon: float = 1e-5
) -> torch.Tensor:
    """Normalizes over the spatial dimensions of each sample and channel."""
    axes = tuple(range(2, x.ndim))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    result = (x - mean) * torch.rsqrt(variance + epsilon)
    shape = (-1, *[1] * (x.ndim - 2))
    if gamma is not None:
        result = result * gamma.reshape(shape)
    return result if beta is None else result + beta.reshape(shape)


@register_op("layer_norm")
def layer_norm(
    x: torch.Tensor,
    axes: Ints | None = None,
    gamma: torch.Tensor | None = None,
    beta: torch.Tensor | None = None,
    epsilon: float = 1e-5,
) -> torch.Tensor:
    """Normalizes over ``axes`` (all when None); gamma and beta have the shape of those axes."""
    chosen = sorted(axis % x.ndim for axis in axes) if axes else list(range(x.ndim))
    shape = tuple(x.shape[axis] for axis in chosen)
    if chosen == list(range(x.ndim - len(chosen), x.ndim)):
        return F.layer_norm(x, shape, gamma, beta, epsilon)
    variance, mean = torch.var_mean(x, chosen, correction=0, keepdim=True)
    result = (x - mean) * torch.rsqrt(variance + epsilon)
    broadcast = tuple(size if axis in chosen else 1 for axis, size in enumerate(x.shape))
    if gamma is not None:
        result = result * gamma.reshape(broadcast)
    return result if beta is None else result + beta.reshape(broadcast)


@register_op("l2_norm")
def l2_norm(x: torch.Tensor, epsilon: float = 1e-6) -> torch.Tensor:
    """Returns x divided by the root of the sum of squares over its last three dimensions."""
    return x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


@register_op("local_response_norm")
def local_response_norm(
    x: torch.Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> torch.Tensor:
    """Returns x / (k + alpha / size * sum of squares of the neighboring channels) ** beta."""
    return F.local_response_norm(x, size, alpha, beta, k)
