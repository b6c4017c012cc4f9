"""One architecture of the sweep: a class of transformers, a tiny configuration and example inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from helpers.models import settle
from torch import Tensor, nn

Inputs = Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class Entry:
    """A row of the sweep.

    Attributes:
        model: The name of a model class of transformers.
        inputs: Makes the example inputs, by the names of the model's arguments.
        config: Arguments of the model's configuration; plain dicts configure the parts of composite models.
        outputs: The names of the outputs to compare; empty: the first tensor.
    """

    model: str
    inputs: Inputs
    config: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()


class Positional(nn.Module):
    """Reduces a transformers model to positional tensors in, a tuple of tensors out."""

    def __init__(self, model: nn.Module, names: Sequence[str], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.outputs = outputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        result = self.model(**dict(zip(self.names, inputs, strict=True)))
        return tuple(result[name] for name in self.outputs) or (_first_tensor(result),)


def _first_tensor(result: Any) -> Tensor:
    while not isinstance(result, Tensor):
        result = result[0]
    return result


def build(entry: Entry) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Returns the model in eval mode and its example inputs, the same on every call."""
    import transformers

    torch.manual_seed(0)
    model_class = getattr(transformers, entry.model)
    model = model_class(model_class.config_class(**entry.config))
    inputs = entry.inputs()
    positional = Positional(model.eval(), list(inputs), entry.outputs)
    values = tuple(inputs.values())
    # Images fade to nothing in networks with random weights, and there would be nothing to compare.
    return settle(positional, values) if list(inputs) == ["pixel_values"] else positional, values
