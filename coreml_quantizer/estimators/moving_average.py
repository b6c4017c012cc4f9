"""The range estimator by a moving average of each batch's minimum and maximum."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from coreml_quantizer.estimators.arguments import Argument
from coreml_quantizer.estimators.base import RangeObserver, State
from coreml_quantizer.specs import TensorSpec


class MovingAverageObserver(RangeObserver):
    """An observer of the exponential moving average of each batch's minimum and maximum; the first batch sets both.

    `value += momentum * (batch value - value)`, as in torch.nn.BatchNorm2d. Source: Jacob et al. 2018, section 3.1.
    """

    ARGUMENTS: ClassVar[Mapping[str, Argument]] = MappingProxyType(
        {"momentum": Argument(0.01, 0.0, 1.0, open_low=True)}
    )

    def __init__(self, spec: TensorSpec, momentum: float = 0.01, **fields: Any) -> None:
        super().__init__(spec, **fields)
        self.momentum = momentum

    def update_range(self, low: Tensor, high: Tensor) -> None:
        # An unset minimum is infinite; the comparison stays on the device.
        unset = self.min_val > self.max_val
        self.min_val = torch.where(unset, low, torch.lerp(self.min_val, low, self.momentum))
        self.max_val = torch.where(unset, high, torch.lerp(self.max_val, high, self.momentum))

    def merge(self, states: Sequence[State]) -> State:
        """Returns the mean of the averages: a moving average depends on the order of batches, which shards lack."""
        return {name: torch.stack([state[name] for state in states]).mean(0) for name in ("min_val", "max_val")}
