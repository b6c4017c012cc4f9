"""Activations."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from partitioner.host.registry import register_op


@register_op("relu", exact=True)
def relu(x: torch.Tensor) -> torch.Tensor:
    """Returns max(x, 0)."""
    return torch.relu(x)


@register_op("relu6", exact=True)
def relu6(x: torch.Tensor) -> torch.Tensor:
    """Returns min(max(x, 0), 6)."""
    return torch.clamp(x, 0, 6)


@register_op("sigmoid")
def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """Returns 1 / (1 + exp(-x))."""
    return torch.sigmoid(x)


@register_op("silu")
def silu(x: torch.Tensor) -> torch.Tensor:
    """Returns x * sigmoid(x)."""
    return F.silu(x)


@register_op("softplus")
def softplus(x: torch.Tensor) -> torch.Tensor:
    """Returns log(1 + exp(x)), without overflow."""
    return torch.logaddexp(x, x.new_zeros(()))


@register_op("softsign")
def softsign(x: torch.Tensor) -> torch.Tensor:
    """Returns x / (1 + |x|)."""
    return F.softsign(x)


_GELU: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "EXACT": F.gelu,
    "TANH_APPROXIMATION": lambda x: F.gelu(x, approximate="tanh"),
    "SIGMOID_APPROXIMATION": lambda x: x * torch.sigmoid(1.702 * x),
}


@register_op("gelu")
def gelu(x: torch.Tensor, mode: str = "EXACT") -> torch.Tensor:
    """Returns the Gaussian error linear unit of x, exact or approximated."""
    return _GELU[mode](x)


@register_op("softmax")
def softmax(x: torch.Tensor, axis: int = -1) -> torch.Tensor:
    """Returns exp(x), normalized to sum one along an axis."""
    return torch.softmax(x, axis)


@register_op("elu")
def elu(x: torch.Tensor, alpha: float) -> torch.Tensor:
    """Returns x where it is positive, else alpha * (exp(x) - 1)."""
    return F.elu(x, alpha)


@register_op("leaky_relu")
def leaky_relu(x: torch.Tensor, alpha: float) -> torch.Tensor:
    """Returns x where it is not negative, else alpha * x."""
    return F.leaky_relu(x, alpha)


@register_op("prelu")
def prelu(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Returns x where it is positive, else alpha * x with one alpha per channel (dimension 1)."""
    return torch.where(x > 0, x, x * _per_channel(alpha, x))


@register_op("thresholded_relu", exact=True)
def thresholded_relu(x: torch.Tensor, alpha: float) -> torch.Tensor:
    """Returns x where it is at least alpha, else 0."""
    return torch.where(x >= alpha, x, 0.0)


@register_op("clamped_relu")
def clamped_relu(x: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """Returns min(beta, x) where x is not negative, else min(beta, alpha * x)."""
    return torch.where(x >= 0, x, alpha * x).clamp(max=beta)


@register_op("linear_activation")
def linear_activation(x: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """Returns alpha * x + beta."""
    return alpha * x + beta


@register_op("scaled_tanh")
def scaled_tanh(x: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """Returns alpha * tanh(beta * x)."""
    return alpha * torch.tanh(beta * x)


@register_op("sigmoid_hard")
def sigmoid_hard(x: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """Returns alpha * x + beta, clipped to 0..1."""
    return torch.clamp(alpha * x + beta, 0, 1)


@register_op("softplus_parametric")
def softplus_parametric(x: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """Returns alpha * log(1 + exp(beta * x)) with one alpha and beta per channel (dimension 1)."""
    return _per_channel(alpha, x) * softplus(x * _per_channel(beta, x))


def _per_channel(parameter: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return parameter.reshape(-1, *[1] * (x.ndim - 2))
