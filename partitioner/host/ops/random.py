"""Random tensors. A seed of -1 draws from torch's global generator; any other gives the same values in every run."""

import torch

from partitioner.host.mil.types import TensorType
from partitioner.host.registry import Ints, Outputs, register_op


@register_op("random_bernoulli", pure=False)
def random_bernoulli(shape: Ints, outputs: Outputs, prob: float = 0.5, seed: int = -1) -> torch.Tensor:
    """Returns ones with a probability, else zeros."""
    return (torch.rand(shape, generator=_generator(seed)) < prob).to(_dtype(outputs))


@register_op("random_uniform", pure=False)
def random_uniform(shape: Ints, outputs: Outputs, low: float = 0.0, high: float = 1.0, seed: int = -1) -> torch.Tensor:
    """Returns numbers uniform over ``[low, high)``."""
    return (low + (high - low) * torch.rand(shape, generator=_generator(seed))).to(_dtype(outputs))


@register_op("random_normal", pure=False)
def random_normal(
    shape: Ints, outputs: Outputs, mean: float = 0.0, stddev: float = 1.0, seed: int = -1
) -> torch.Tensor:
    """Returns normal numbers with a mean and a standard deviation."""
    return (mean + stddev * torch.randn(shape, generator=_generator(seed))).to(_dtype(outputs))


@register_op("random_categorical", pure=False)
def random_categorical(
    x: torch.Tensor, outputs: Outputs, mode: str = "logits", size: int = 1, seed: int = -1
) -> torch.Tensor:
    """Returns indices drawn with replacement by the logits (or probabilities) in the last dimension."""
    weights = torch.softmax(x, -1) if mode == "logits" else x
    drawn = torch.multinomial(weights.reshape(-1, x.shape[-1]), size, replacement=True, generator=_generator(seed))
    return drawn.reshape(*x.shape[:-1], size).to(_dtype(outputs))


def _generator(seed: int) -> torch.Generator | None:
    return None if seed == -1 else torch.Generator().manual_seed(seed)


def _dtype(outputs: Outputs) -> torch.dtype:
    declared = outputs[0]
    assert isinstance(declared, TensorType)
    return declared.dtype.compute
