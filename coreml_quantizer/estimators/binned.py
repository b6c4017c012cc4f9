"""Histograms that do not depend on the order of the values, nor on which process counted them."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from coreml_quantizer.errors import CalibrationError
from coreml_quantizer.estimators.base import RangeObserver, State
from coreml_quantizer.specs import TensorSpec

_SIDE_BITS = 11
_BINS_A_SIDE = 2**_SIDE_BITS
_UNSET = -200
"""Exponent of the bin width before a value other than zero was seen; smaller than any that a float32 value needs."""


@dataclass(frozen=True)
class Histogram:
    """Counts of values between bin edges, without empty bins at its ends.

    Attributes:
        left: Left edge of each bin, float64, ascending and evenly spaced.
        counts: Values in each bin, float64.
        width: Width of a bin; a power of two.
        low: Smallest value counted.
        high: Largest value counted.
    """

    left: Tensor
    counts: Tensor
    width: float
    low: float
    high: float


class BinnedObserver(RangeObserver):
    """An observer that counts values in 4096 bins `[i * 2**e, (i + 1) * 2**e)`; a subclass chooses the range from them.

    The exponent grows when a value does not fit, which merges pairs of bins. The counts are therefore the same as if
    the final bins had been used from the start, in any order of batches, and histograms of shards add up exactly.
    torchao's HistogramObserver interpolates old counts into new bins instead, and takes about five times as long.

    Attributes:
        counts: int64, shape (4096,); bin `i` is at index `i + 2048`.
        exponent: int64 scalar, binary logarithm of the bin width.
    """

    PER_CHANNEL: ClassVar[bool] = False

    counts: Tensor
    exponent: Tensor

    def __init__(self, spec: TensorSpec, **fields: Any) -> None:
        super().__init__(spec, **fields)
        self.register_buffer("counts", torch.zeros(2 * _BINS_A_SIDE, dtype=torch.int64))
        self.register_buffer("exponent", torch.tensor(_UNSET))

    @abstractmethod
    def choose(self, histogram: Histogram) -> tuple[float, float]:
        """Returns the range to represent, which lies within the counted values."""

    def reset(self) -> None:
        """Forgets everything observed."""
        super().reset()
        self.counts = torch.zeros_like(self.counts)
        self.exponent = torch.full_like(self.exponent, _UNSET)

    def histogram(self) -> Histogram:
        """Returns the histogram of the values counted so far."""
        occupied = self.counts.nonzero().flatten()
        first, last = int(occupied[0]), int(occupied[-1])
        width = 2.0 ** int(self.exponent)
        left = torch.arange(first - _BINS_A_SIDE, last + 1 - _BINS_A_SIDE, dtype=torch.float64) * width
        counts = self.counts[first : last + 1].to("cpu", torch.float64)
        return Histogram(left, counts, width, float(self.min_val), float(self.max_val))

    def merge(self, states: Sequence[State]) -> State:
        """Adds the histograms: the result is that of one observer that saw all values."""
        exponent = torch.stack([state["exponent"] for state in states]).amax(0)
        counts = [_merge_bins(state["counts"], int(exponent - state["exponent"])) for state in states]
        return {
            "min_val": torch.stack([state["min_val"] for state in states]).amin(0),
            "max_val": torch.stack([state["max_val"] for state in states]).amax(0),
            "counts": torch.stack(counts).sum(0),
            "exponent": exponent,
        }

    def since(self, state: State, common: State) -> State:
        """Subtracts the common counts."""
        before = _merge_bins(common["counts"], int(state["exponent"] - common["exponent"]))
        return {**state, "counts": state["counts"] - before}

    def update_range(self, low: Tensor, high: Tensor) -> None:
        self.min_val = torch.minimum(self.min_val, low)
        self.max_val = torch.maximum(self.max_val, high)

    def _observe(self, x: Tensor) -> None:
        super()._observe(x)
        peak = torch.maximum(-self.min_val, self.max_val)
        if not torch.isfinite(peak):
            raise CalibrationError(self.why_no_range())
        if peak > 0:
            self._widen(int(torch.frexp(peak).exponent) - _SIDE_BITS)
        self.counts += _count(x, int(self.exponent))

    def _widen(self, exponent: int) -> None:
        current = int(self.exponent)
        if exponent > current:
            self.counts = _merge_bins(self.counts, exponent - current)
            self.exponent.fill_(exponent)

    def _estimate(self) -> tuple[Tensor, Tensor]:
        low, high = self.choose(self.histogram())
        return torch.full_like(self.min_val, low), torch.full_like(self.max_val, high)


def _count(x: Tensor, exponent: int) -> Tensor:
    # float32 cannot hold the factor of a denormal range; a power of two is exact in either type.
    wide = x.double() if exponent < -120 else x.float()
    index = (wide.reshape(-1) * 2.0**-exponent).floor_().add_(_BINS_A_SIDE).to(torch.int32)
    # What rounds up to the last power of two in the arithmetic above belongs to the last bin.
    index.clamp_(0, 2 * _BINS_A_SIDE - 1)
    return torch.bincount(index, minlength=2 * _BINS_A_SIDE)


def _merge_bins(counts: Tensor, doublings: int) -> Tensor:
    """Returns `counts` in bins that are 2**doublings times as wide."""
    if doublings == 0:
        return counts
    bins = torch.arange(-_BINS_A_SIDE, _BINS_A_SIDE, device=counts.device)
    index = (bins >> min(doublings, _SIDE_BITS + 1)) + _BINS_A_SIDE
    return torch.zeros_like(counts).scatter_add_(0, index, counts)
