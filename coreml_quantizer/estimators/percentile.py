"""The range estimator by percentiles: a share of the values on each side is clipped."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from coreml_quantizer.estimators.arguments import Argument
from coreml_quantizer.estimators.base import channels_first
from coreml_quantizer.estimators.binned import BinnedObserver, Histogram
from coreml_quantizer.specs import TensorSpec

_DEFAULT = 99.99


class PercentileObserver(BinnedObserver):
    """An observer of the range from the `100 - percentile`-th to the `percentile`-th percentile of all values seen.

    Activations are counted in bins, so a percentile is exact to one bin: 2**-10 of the largest value or better. Weights
    are sorted, so theirs is exact. Source: Wu et al. 2020, "Integer Quantization for Deep Learning Inference", section
    4.
    """

    ARGUMENTS: ClassVar[Mapping[str, Argument]] = MappingProxyType({"percentile": Argument(_DEFAULT, 50.0, 100.0)})
    PER_CHANNEL: ClassVar[bool] = True

    def __init__(self, spec: TensorSpec, percentile: float = _DEFAULT, **fields: Any) -> None:
        super().__init__(spec, **fields)
        self.percentile = percentile

    def choose(self, histogram: Histogram) -> tuple[float, float]:
        """Interpolates both percentiles within their bins."""
        share = self.percentile / 100.0
        low, high = (_quantile(histogram, wanted) for wanted in (1.0 - share, share))
        return _within(low, histogram), _within(high, histogram)

    def _observe(self, x: Tensor) -> None:
        if not self.constant:
            super()._observe(x)
            return
        rows = channels_first(x, self.ch_axis).float()
        rank = (self.percentile / 100.0) * (rows.shape[1] - 1)
        low, high = _between(rows, rows.shape[1] - 1 - rank), _between(rows, rank)
        poisoned = ~torch.isfinite(rows).all(1)
        ranges = (torch.where(poisoned, torch.nan, value) for value in (low, high))
        self.min_val, self.max_val = ((value if self.ch_axis >= 0 else value.squeeze(0)) for value in ranges)

    def _estimate(self) -> tuple[Tensor, Tensor]:
        return (self.min_val, self.max_val) if self.constant else super()._estimate()


def _within(value: float, histogram: Histogram) -> float:
    return min(max(value, histogram.low), histogram.high)


def _quantile(histogram: Histogram, share: float) -> float:
    counts = histogram.counts
    wanted = share * float(counts.sum())
    before = torch.cumsum(counts, 0) - counts
    index = int(torch.searchsorted(before, torch.tensor(wanted, dtype=torch.float64), right=True)) - 1
    index = max(index, 0)
    inside = min((wanted - float(before[index])) / max(float(counts[index]), 1.0), 1.0)
    return float(histogram.left[index]) + inside * histogram.width


def _between(rows: Tensor, rank: float) -> Tensor:
    """Returns the value at a fractional rank of each row, interpolated between its neighbours.

    torch.quantile has a limit on the number of values.
    """
    lower = int(rank)
    upper = min(lower + 1, rows.shape[1] - 1)
    ordered = rows.sort(1).values
    return torch.lerp(ordered[:, lower], ordered[:, upper], rank - lower)
