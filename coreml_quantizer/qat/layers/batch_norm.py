"""Batch norm as a module of the graph, so that it follows the model's mode and can be frozen."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from coreml_quantizer.qat.schedule import Mode, Scheduled, nothing
from coreml_quantizer.qat.several_ranks import several_ranks


class BatchNorm(Scheduled):
    """A batch norm that uses the statistics of the batch in training, and the running statistics otherwise.

    Attributes:
        frozen: Whether training also uses the running statistics and does not change them.
    """

    def __init__(self, momentum: float, eps: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.frozen = False
        self.register_buffer("is_frozen", torch.tensor(0, dtype=torch.uint8))
        self.schedule(None)
        self._new: tuple[Tensor, ...] = ()

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
        batches: Tensor | None = None,
        mode: Mode = None,
    ) -> Tensor:
        """Normalizes `x`, of shape (batch, channels, ...); all other tensors except `batches` have shape (channels,).

        Without running statistics, those of the batch are used in every mode.
        """
        trains = mean is None or (bool(mode) and not self.frozen)
        if trains and batches is not None:
            batches.add_(1)
        if trains and mean is not None and variance is not None and several_ranks():
            self._new = (mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, trains, self.momentum, self.eps)

    def take_new(self) -> tuple[Tensor, ...]:
        """Returns the running statistics that changed since the last call: the tensors themselves, not copies.

        Changes are recorded only with several ranks.
        """
        new, self._new = self._new, ()
        return new

    def freeze(self) -> None:
        """Freezes the running statistics from now on."""
        self.frozen = True

    def actions(self) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None], Callable[[], None]]:
        return nothing, nothing, nothing, self.freeze

    def switches(self) -> Mapping[str, str]:
        return MappingProxyType({"is_frozen": "frozen", **super().switches()})

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, eps={self.eps}{', frozen' if self.frozen else ''}"
