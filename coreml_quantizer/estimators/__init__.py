"""Range estimators: observers that turn the values of a tensor into the range that its scale covers."""

from collections.abc import Mapping
from types import MappingProxyType

from coreml_quantizer.estimators.automatic import AutomaticObserver
from coreml_quantizer.estimators.base import RangeObserver, extremes, qscheme_of
from coreml_quantizer.estimators.entropy import EntropyObserver
from coreml_quantizer.estimators.histogram import HistogramObserver
from coreml_quantizer.estimators.min_max import MinMaxObserver
from coreml_quantizer.estimators.moving_average import MovingAverageObserver
from coreml_quantizer.estimators.mse import MseObserver
from coreml_quantizer.estimators.percentile import PercentileObserver

ESTIMATORS: Mapping[str, type[RangeObserver]] = MappingProxyType(
    {
        "automatic": AutomaticObserver,
        "min_max": MinMaxObserver,
        "moving_average": MovingAverageObserver,
        "histogram": HistogramObserver,
        "percentile": PercentileObserver,
        "entropy": EntropyObserver,
        "mse": MseObserver,
    }
)
"""Range estimators by the name that `RangeEstimator.name` and configurations use."""

__all__ = [
    "ESTIMATORS",
    "AutomaticObserver",
    "EntropyObserver",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageObserver",
    "MseObserver",
    "PercentileObserver",
    "RangeObserver",
    "extremes",
    "qscheme_of",
]
