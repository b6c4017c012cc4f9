"""The range estimator by minimum and maximum over all of calibration."""

from collections.abc import Sequence

import torch
from torch import Tensor

from coreml_quantizer.estimators.base import RangeObserver, State


class MinMaxObserver(RangeObserver):
    """An observer of the smallest and the largest value in all of calibration."""

    def update_range(self, low: Tensor, high: Tensor) -> None:
        self.min_val = torch.minimum(self.min_val, low)
        self.max_val = torch.maximum(self.max_val, high)

    def merge(self, states: Sequence[State]) -> State:
        """Returns the extremes of all states: the result is that of one observer that saw all values."""
        return {
            "min_val": torch.stack([state["min_val"] for state in states]).amin(0),
            "max_val": torch.stack([state["max_val"] for state in states]).amax(0),
        }
