"""The default range estimator: extremes in calibration, a moving average in training."""

from coreml_quantizer.estimators.base import RangeObserver
from coreml_quantizer.estimators.min_max import MinMaxObserver
from coreml_quantizer.estimators.moving_average import MovingAverageObserver


class AutomaticObserver(MinMaxObserver):
    """The smallest and largest value seen in calibration; a moving average of them in training.

    Calibration shows a fixed model a few batches: the average of their extremes clips a part of every batch, and with a
    small momentum it is the range of the first batch alone. In training the values themselves move, and what they were
    thousands of steps ago must not stay in the range.
    """

    def for_training(self) -> RangeObserver:
        return MovingAverageObserver(self.spec)
