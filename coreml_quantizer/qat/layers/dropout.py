"""Dropouts as modules of the graph, so that they follow the model's mode."""

import torch
from torch import Tensor, nn

from coreml_quantizer.graph.modes import DROPOUTS
from coreml_quantizer.qat.schedule import Mode

aten = torch.ops.aten

KINDS = frozenset(dropout.default for dropout in DROPOUTS)


class Dropout(nn.Module):
    """A dropout that drops values only in training."""

    def __init__(self, kind: torch._ops.OpOverload, probability: float) -> None:
        super().__init__()
        self.kind = aten.dropout.default if kind is aten.dropout_.default else kind
        self.probability = probability

    def forward(self, x: Tensor, mode: Mode = None) -> Tensor:
        """Returns `x` with some values set to zero if the model trains."""
        return self.kind(x, self.probability, True) if mode else x

    def extra_repr(self) -> str:
        return f"{self.kind}, p={self.probability}"


class StochasticDepth(Dropout):
    """A dropout that drops all values at an index of some axes, or none, such as a residual branch of a sample."""

    def __init__(self, probability: float, axes: tuple[int, ...]) -> None:
        super().__init__(aten.dropout.default, probability)
        self.axes = axes

    def forward(self, x: Tensor, mode: Mode = None) -> Tensor:
        """Returns `x` with some parts set to zero, and the others scaled up, if the model trains."""
        if not mode:
            return x
        keep = 1.0 - self.probability
        sizes = [size if axis in self.axes else 1 for axis, size in enumerate(x.shape)]
        return x * x.new_empty(sizes).bernoulli_(keep).div_(keep)
