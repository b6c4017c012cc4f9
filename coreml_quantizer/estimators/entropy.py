"""The range estimator with the least loss of information, measured as Kullback-Leibler divergence."""

import torch
from torch import Tensor

from coreml_quantizer.estimators.binned import BinnedObserver, Histogram

_LEVELS = 128
"""Number of magnitudes that eight bits represent. Source: Migacz 2017, as for all rules below."""

_STRIDE = 8
"""Number of bins from one tried threshold to the next."""


class EntropyObserver(BinnedObserver):
    """An observer that clips magnitudes at the threshold whose 128-level histogram diverges least from the full one.

    Values beyond the threshold are counted at the threshold. Source: Migacz 2017, "8-bit Inference with TensorRT".
    """

    def choose(self, histogram: Histogram) -> tuple[float, float]:
        """Tries thresholds from 128 bins up to the largest magnitude, eight bins apart."""
        magnitudes = _fold(histogram)
        size = len(magnitudes)
        if size <= _LEVELS:
            return histogram.low, histogram.high
        tried = [*range(_LEVELS, size, _STRIDE), size]
        divergences = torch.stack([divergence(magnitudes, bins) for bins in tried])
        threshold = tried[int(divergences.argmin())] * histogram.width
        return max(-threshold, histogram.low), min(threshold, histogram.high)


def divergence(magnitudes: Tensor, bins: int) -> Tensor:
    """Returns the divergence between the clipped histogram and its version in 128 levels, in nats.

    Args:
        magnitudes: Counts by magnitude, float64, one-dimensional.
        bins: Number of these counts that lie below the threshold.
    """
    inside = magnitudes[:bins]
    clipped = inside.clone()
    clipped[-1] += magnitudes[bins:].sum()
    level = torch.arange(bins) * _LEVELS // bins
    totals = torch.zeros(_LEVELS, dtype=inside.dtype).scatter_add_(0, level, inside)
    occupied = (inside > 0).to(inside.dtype)
    members = torch.zeros(_LEVELS, dtype=inside.dtype).scatter_add_(0, level, occupied)
    spread = (totals / members.clamp(min=1))[level] * occupied
    reference, candidate = clipped / clipped.sum(), spread / spread.sum().clamp(min=1)
    shown = reference > 0
    # What was clipped into an empty bin has no counterpart: a floor keeps the divergence finite and large.
    floor = torch.finfo(candidate.dtype).tiny
    return (reference[shown] * (reference[shown].log() - candidate[shown].clamp(min=floor).log())).sum()


def _fold(histogram: Histogram) -> Tensor:
    """Returns the counts by magnitude; the first bin counts at most as the second, because exact zeros cost nothing."""
    magnitude = (histogram.left / histogram.width).long()
    magnitude = torch.where(magnitude < 0, -magnitude - 1, magnitude)
    folded = torch.zeros(int(magnitude.max()) + 1, dtype=torch.float64).scatter_add_(0, magnitude, histogram.counts)
    if len(folded) > 1:
        folded[0] = torch.minimum(folded[0], folded[1])
    return folded
