"""Dropout as a module of the graph, so that it follows the model's mode."""

import torch
from torch import Tensor, nn

from coreml_quantizer.modes import DROPOUTS
from coreml_quantizer.qat.fake_quantize import Mode

aten = torch.ops.aten

KINDS = frozenset(dropout.default for dropout in DROPOUTS)


class Dropout(nn.Module):
    """Drops values in training, and only then."""

    def __init__(self, kind: torch._ops.OpOverload, probability: float) -> None:
        super().__init__()
        self.kind = aten.dropout.default if kind is aten.dropout_.default else kind
        self.probability = probability

    def forward(self, x: Tensor, mode: Mode = None) -> Tensor:
        """Returns `x` with some values set to zero if the model trains."""
        return self.kind(x, self.probability, True) if mode else x

    def extra_repr(self) -> str:
        return f"{self.kind}, p={self.probability}"
