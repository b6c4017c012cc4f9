"""The range estimator with the least expected squared error over a histogram."""

import torch
from torch import Tensor

from coreml_quantizer.estimators.binned import BinnedObserver, Histogram
from coreml_quantizer.specs import Scheme

_CANDIDATES = 65
_REFINEMENTS = 3
_NEIGHBOURS = 21
_ROUNDING_NOISE = 1.0 / 12.0
"""Mean squared error of rounding, in squared steps, for values spread over several of them."""


class HistogramObserver(BinnedObserver):
    """An observer that finds the range with the least mean squared error over all values seen.

    It searches both ends with the affine scheme, and one magnitude with the symmetric scheme. The search starts with a
    model: a value inside the range costs `step**2 / 12`, a value outside costs its squared distance to the range, and a
    value around zero costs nothing, because zero is always represented. It ends near the model's optimum, with the
    error of every bin's centre. Source of the model: Bennett 1948, "Spectra of quantized signals".
    """

    def choose(self, histogram: Histogram) -> tuple[float, float]:
        """Searches with the model, then near its optimum with the errors themselves."""
        symmetric = self.spec.scheme is Scheme.SYMMETRIC
        steps = self.quant_max - self.quant_min
        widest = (min(histogram.low, 0.0), max(histogram.high, 0.0))
        if symmetric:
            widest = (0.0, max(-widest[0], widest[1]))
        low, high = _search(_Cost(histogram, steps, symmetric), *widest)
        lows, highs = (_near(end, limit) for end, limit in zip((low, high), widest, strict=True))
        low, high = _least_error(histogram, steps, symmetric, lows, highs)
        return (max(-high, histogram.low), min(high, histogram.high)) if symmetric else (low, high)


class _Cost:
    """The expected squared error of any range, computed in constant time from running sums over the histogram."""

    def __init__(self, histogram: Histogram, steps: int, symmetric: bool) -> None:
        self._symmetric = symmetric
        center = histogram.left + histogram.width / 2
        counts = histogram.counts
        near_zero = center.abs() < histogram.width
        self._left, self._width, self._steps = histogram.left, histogram.width, steps
        self._noisy = _running(counts.masked_fill(near_zero, 0.0))
        self._sums = tuple(_running(counts * center**power) for power in range(3))

    def __call__(self, low: Tensor, high: Tensor) -> Tensor:
        """Returns the cost of ranges from `low` to `high`, which broadcast; symmetric ones need only `high`."""
        low = (-high if self._symmetric else low) + torch.zeros_like(high)
        high = high + torch.zeros_like(low)
        first, last = self._position(low), self._position(high)
        step = (high - low) / self._steps
        inside = _ROUNDING_NOISE * step**2 * (_at(self._noisy, last) - _at(self._noisy, first))
        count, total, squares = self._sums
        end = torch.full_like(last, len(self._left))
        below = _at(squares, first) - 2 * low * _at(total, first) + low**2 * _at(count, first)
        above = (
            (_at(squares, end) - _at(squares, last))
            - 2 * high * (_at(total, end) - _at(total, last))
            + high**2 * (_at(count, end) - _at(count, last))
        )
        return inside + below.clamp(min=0) + above.clamp(min=0)

    def _position(self, edge: Tensor) -> Tensor:
        return ((edge - self._left[0]) / self._width).clamp(0, len(self._left))


def _running(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def _at(running: Tensor, position: Tensor) -> Tensor:
    """Returns a running sum at a fractional position."""
    lower = position.floor().long().clamp(max=len(running) - 2)
    return torch.lerp(running[lower], running[lower + 1], position - lower)


def _search(cost: _Cost, low: float, high: float) -> tuple[float, float]:
    """Returns the ends in [low, 0] and [0, high] with the least cost: a coarse grid, then finer ones near its best."""
    lows, highs = _grid(low, 0.0), _grid(0.0, high)
    best = (low, high)
    for _ in range(_REFINEMENTS):
        costs = cost(lows[:, None], highs[None, :])
        row, column = divmod(int(costs.argmin()), len(highs))
        best = (float(lows[row]), float(highs[column]))
        lows, highs = _around(lows, row), _around(highs, column)
    return best


def _grid(start: float, end: float) -> Tensor:
    points = 1 if start == end else _CANDIDATES
    return torch.linspace(start, end, points, dtype=torch.float64)


def _around(grid: Tensor, index: int) -> Tensor:
    start, end = float(grid[max(index - 1, 0)]), float(grid[min(index + 1, len(grid) - 1)])
    return torch.linspace(start, end, 1 if start == end else _CANDIDATES, dtype=torch.float64)


def _near(end: float, limit: float) -> Tensor:
    """Returns ends around the model's best one, from 0.5 to 1.5 times it, within the values seen."""
    if end == 0.0:
        return torch.zeros(1, dtype=torch.float64)
    tried = torch.linspace(0.5, 1.5, _NEIGHBOURS, dtype=torch.float64) * end
    return tried.clamp(min(limit, 0.0), max(limit, 0.0))


def _least_error(histogram: Histogram, steps: int, symmetric: bool, lows: Tensor, highs: Tensor) -> tuple[float, float]:
    """Returns the pair from `lows` and `highs` that quantizes the centres of all bins with the least squared error."""
    centers = histogram.left + histogram.width / 2
    best, least = (float(lows[0]), float(highs[-1])), torch.inf
    for low in lows.tolist():
        bottom = -highs[:, None] if symmetric else torch.full_like(highs, low)[:, None]
        scale = (highs[:, None] - bottom) / steps
        scale = torch.where(scale > 0, scale, 1.0)
        offset = torch.round(-bottom / scale) if not symmetric else (steps + 1) // 2
        restored = (torch.round(centers / scale).add_(offset).clamp_(0, steps) - offset) * scale
        errors = (restored - centers).square() @ histogram.counts
        index = int(errors.argmin())
        if float(errors[index]) < least:
            best, least = (low, float(highs[index])), float(errors[index])
    return best
