"""Fake quantizers whose range an estimator finds while the model trains."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from coreml_quantizer.errors import CalibrationError
from coreml_quantizer.estimators import MinMaxObserver, MovingAverageObserver, RangeObserver, extremes
from coreml_quantizer.estimators.qparams import choose_qparams, choose_qparams_on_cpu
from coreml_quantizer.process.lifecycle import refuse_export
from coreml_quantizer.qat.quantizers.base import FakeQuantizer
from coreml_quantizer.qat.quantizers.numbers import (
    Singles,
    choose_grid,
    choose_grids,
    eager_on_cpu,
    extremes_on_cpu,
    move_range,
    move_ranges,
)
from coreml_quantizer.qat.quantizers.rounding import Interval, fake_quantize_channels, fake_quantize_tensor
from coreml_quantizer.qat.schedule import Mode


class FakeQuantize(FakeQuantizer):
    """A fake quantizer with a range that an estimator finds."""

    def __init__(self, observer: RangeObserver, weight: Tensor | None = None) -> None:
        """Creates all state at its final shape, so that a checkpoint from any moment fits.

        Args:
            observer: The estimator of the range.
            weight: The weight that is quantized; None for an activation.
        """
        super().__init__(observer.spec)
        self.observer = observer
        channels = 1 if weight is None or self.ch_axis < 0 else weight.shape[self.ch_axis]
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("zero_point", torch.zeros(channels, dtype=torch.int32))
        if weight is not None and self.ch_axis >= 0:
            observer.min_val, observer.max_val = (
                b.expand(channels).clone() for b in (observer.min_val, observer.max_val)
            )
        self.register_buffer("range_known", torch.tensor(0, dtype=torch.uint8))
        self.known = False
        self.clip: Interval | None = None

    @property
    def clips(self) -> bool:
        """Whether quantization already clamps values to `clip`, the range of the activation before it."""
        return self.clip is not None and self.quantizes and self.known

    def forward(self, x: Tensor, mode: Mode = None) -> Tensor:
        """Fake-quantizes `x`, of any shape and float dtype; in eval mode (`mode` False) a known range is kept."""
        refuse_export()
        if self.observes and x.numel() and (mode is not False or not self.known):
            self.observe(x.detach())
        return self.quantize(x) if self.quantizes and self.known else self.skip(x)

    def skip(self, x: Tensor) -> Tensor:
        """Returns `x` unchanged; called while nothing is rounded."""
        return x

    def observe(self, x: Tensor) -> None:
        """Moves the range by the values of `x`.

        Raises:
            CalibrationError: `x` contains not-a-number or infinite values. This is checked at once in eager mode
                on a CPU; elsewhere `quantizer.step()` checks it every 100 steps.
        """
        if not self.follows_extremes:
            self.observer(x)
            self.refresh()
            if eager_on_cpu(x):
                self.check()
            return
        if not eager_on_cpu(x):
            low, high = extremes(x, self.ch_axis)
            if self.clip is not None:
                low, high = low.clamp(*self.clip), high.clamp(*self.clip)
            self.observer.update_range(low, high)
            self.refresh()
        elif self.ch_axis < 0:
            self._observe_number(x)
        else:
            low, high = extremes_on_cpu(x, self.ch_axis)
            self.observe_channels(low.float().numpy(), high.float().numpy())

    @property
    def follows_extremes(self) -> bool:
        """Whether the estimator needs only the smallest and largest values."""
        return isinstance(self.observer, MinMaxObserver | MovingAverageObserver)

    def _observe_number(self, x: Tensor) -> None:
        high = torch.amax(x).item()
        # What a ReLU clamps to zero belongs to every range anyway.
        low = 0.0 if self.clip is not None and self.clip[0] == 0.0 else torch.amin(x).item()
        if self.clip is not None:
            low, high = (min(max(end, self.clip[0]), self.clip[1]) for end in (low, high))
        if not math.isfinite(high - low):
            raise CalibrationError(self._why_no_range())
        scale, zero_point = choose_grid(*move_range(self.observer, low, high), self.storage, self.spec.scheme)
        self.scale.fill_(scale)
        self.zero_point.fill_(zero_point)
        self._become_known()

    def observe_channels(self, low: Singles, high: Singles) -> None:
        """Moves the ranges by smallest and largest values of shape (channels,), in eager mode on a CPU.

        Raises:
            CalibrationError: They are not finite.
        """
        if not math.isfinite(float(high.sum()) - float(low.sum())):
            raise CalibrationError(self._why_no_range())
        scale, zero_point = choose_grids(*move_ranges(self.observer, low, high), self.storage, self.spec.scheme)
        self.scale.numpy()[:] = scale
        self.zero_point.numpy()[:] = zero_point
        self._become_known()

    def _become_known(self) -> None:
        # Setting an attribute of a module costs more than looking whether it is set.
        if not self.known:
            self.known = True

    def clips_between(self, low: Singles, high: Singles) -> bool:
        """Returns whether values between `low` and `high`, each of shape (channels,), can be clipped."""
        scale, zero_point = self.scale.numpy(), self.zero_point.numpy()
        lowest, highest = (self.quant_min - 0.5 - zero_point) * scale, (self.quant_max + 0.5 - zero_point) * scale
        return bool((low < lowest).any() or (high > highest).any())

    def refresh(self) -> None:
        """Sets scale and zero point from the range that the estimator has now."""
        low, high = self.observer.running_range()
        choose = choose_qparams_on_cpu if eager_on_cpu(low) else choose_qparams
        self.set_qparams(*choose(low, high, self.storage, self.spec.scheme))

    def set_qparams(self, scale: Tensor, zero_point: Tensor) -> None:
        """Sets scale and zero point, each of any shape with one element per channel."""
        if self.scale.numel() == scale.numel():
            self.scale.copy_(scale.reshape(-1))
            self.zero_point.copy_(zero_point.reshape(-1))
        else:
            self.scale, self.zero_point = scale.reshape(-1), zero_point.reshape(-1).to(torch.int32)
        self.known = True

    def switches(self) -> Mapping[str, str]:
        return MappingProxyType({"range_known": "known", **super().switches()})

    def check(self) -> None:
        """Checks that the range is finite.

        Raises:
            CalibrationError: It is not finite.
        """
        if self.known and not math.isfinite(float(self.scale.sum())):
            raise CalibrationError(self._why_no_range())

    def _why_no_range(self) -> str:
        return (
            f"'{self.tensor_name}' took not-a-number or infinite values in training, so it has no range. Look for "
            "a loss that diverged (lower the learning rate, clip gradients) or for an input that is not finite."
        )

    def quantize(self, x: Tensor) -> Tensor:
        """Rounds `x` with the current scale and zero point."""
        low, high = self.quant_min, self.quant_max
        if self.ch_axis < 0:
            return fake_quantize_tensor(x, self.scale, self.zero_point, low, high, self.clip)
        return fake_quantize_channels(x, self.scale, self.zero_point, self.ch_axis, low, high)

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        if not self.known:
            raise CalibrationError(
                f"'{self.tensor_name}' was never observed, so it has no range. Run the prepared model on at least one "
                "batch with observers on (milestone 0 has to be reached: call quantizer.step() in the training loop)."
            )
        self.check()
        return self.scale, self.zero_point.to(torch.int64)
