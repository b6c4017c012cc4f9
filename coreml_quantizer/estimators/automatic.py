"""The default range estimator: minimum and maximum in calibration, their moving average in training."""

from coreml_quantizer.estimators.base import RangeObserver
from coreml_quantizer.estimators.min_max import MinMaxObserver
from coreml_quantizer.estimators.moving_average import MovingAverageObserver


class AutomaticObserver(MinMaxObserver):
    """An observer of the smallest and largest value in calibration, and of their moving average in training.

    Calibration shows a few batches to a fixed model. The average of their extremes would clip a part of every batch,
    and with a small momentum it would be little more than the range of the first batch. In training the values
    themselves change, and values of thousands of steps ago must not stay in the range.
    """

    def for_training(self) -> RangeObserver:
        return MovingAverageObserver(self.spec)
