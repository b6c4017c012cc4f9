"""The range estimator with the least squared error, found by trying ranges on the values themselves."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from coreml_quantizer.estimators.arguments import Argument
from coreml_quantizer.estimators.base import RangeObserver, State, channels_first, extremes
from coreml_quantizer.estimators.qparams import choose_qparams
from coreml_quantizer.specs import TensorSpec

_MOST_VALUES = 2**16
"""An activation with more values than this in a batch is sampled at even distances; a weight is used completely."""

_SUMMED = ("low_sum", "high_sum", "batches")


class MseObserver(RangeObserver):
    """An observer that shrinks each batch's range by the factor with the least squared error, averaged over batches.

    Factors are evenly spaced from `smallest` to 1. The error is that of quantizing with exactly the scale and zero
    point that the range gives, so it is right for few bits too. A weight is one batch. Source: Banner et al. 2019 for
    clipping by mean squared error; the grid search as in Nagel et al. 2021, section 3.1.
    """

    ARGUMENTS: ClassVar[Mapping[str, Argument]] = MappingProxyType(
        {
            "steps": Argument(64, 1, 4096, whole=True),
            "smallest": Argument(0.2, 0.0, 1.0, open_low=True),
        }
    )

    low_sum: Tensor
    high_sum: Tensor
    batches: Tensor

    def __init__(self, spec: TensorSpec, steps: int = 64, smallest: float = 0.2, **fields: Any) -> None:
        super().__init__(spec, **fields)
        self.factors = torch.linspace(smallest, 1.0, int(steps)).tolist() if steps > 1 else [1.0]
        self.register_buffer("low_sum", torch.zeros((), dtype=torch.float64))
        self.register_buffer("high_sum", torch.zeros((), dtype=torch.float64))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def reset(self) -> None:
        """Forgets everything observed."""
        super().reset()
        self.low_sum = torch.zeros_like(self.low_sum)
        self.high_sum = torch.zeros_like(self.high_sum)
        self.batches = torch.zeros_like(self.batches)

    def merge(self, states: Sequence[State]) -> State:
        """Adds the sums, so that every batch counts the same."""
        return {
            "min_val": torch.stack([state["min_val"] for state in states]).amin(0),
            "max_val": torch.stack([state["max_val"] for state in states]).amax(0),
            **{name: torch.stack([state[name] for state in states]).sum(0) for name in _SUMMED},
        }

    def since(self, state: State, common: State) -> State:
        """Subtracts the common sums."""
        return {**state, **{name: state[name] - common[name] for name in _SUMMED}}

    def _observe(self, x: Tensor) -> None:
        low, high = (value.float() for value in extremes(x, self.ch_axis))
        self.min_val, self.max_val = torch.minimum(self.min_val, low), torch.maximum(self.max_val, high)
        rows = channels_first(x, self.ch_axis).float()
        if not self.constant and rows.shape[1] > _MOST_VALUES:
            rows = rows[:, :: rows.shape[1] // _MOST_VALUES]
        factor = self._best_factor(rows, low.reshape(-1), high.reshape(-1)).reshape(low.shape)
        self.low_sum = self.low_sum + (factor * low)
        self.high_sum = self.high_sum + (factor * high)
        self.batches += 1

    def _best_factor(self, rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
        storage = self.storage
        errors = []
        for factor in self.factors:
            scale, zero_point = choose_qparams(factor * low, factor * high, storage, self.spec.scheme)
            offset = zero_point[:, None].float()
            steps = torch.round(rows / scale[:, None]) + offset
            restored = (steps.clamp(storage.quant_min, storage.quant_max) - offset) * scale[:, None]
            errors.append((restored - rows).double().square().sum(1))
        # The last of equal factors is the widest: values never seen here are clipped least.
        best = len(self.factors) - 1 - torch.stack(errors).flip(0).argmin(0)
        return torch.tensor(self.factors, device=rows.device)[best]

    def _estimate(self) -> tuple[Tensor, Tensor]:
        return (self.low_sum / self.batches).float(), (self.high_sum / self.batches).float()
