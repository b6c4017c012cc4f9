"""Learned step size quantization: the scale is a parameter that the loss trains.

Source: Esser et al. 2020 (LSQ), equations 1 to 3, and sections 2.1 to 2.2 for gradient and initialization.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from coreml_quantizer.estimators import RangeObserver
from coreml_quantizer.estimators.qparams import choose_qparams, round_up_to_half
from coreml_quantizer.qat.quantizers.estimated import FakeQuantize
from coreml_quantizer.qat.several_ranks import several_ranks

_SMALLEST = 1e-12
"""The smallest step; a step that becomes zero or negative would reverse the order of the values."""


class LearnableFakeQuantize(FakeQuantize):
    """A fake quantizer whose step (its scale) is trained with the model.

    The first observed batch sets the step to `2 * mean|x| / sqrt(quant_max)`, and sets the zero point, which then
    stays. In the symmetric scheme, the zero point is the middle of the range; in the affine scheme, it comes from the
    range of the observer.

    Attributes:
        step: The step size, a parameter, shape `(1,)` or `(channels,)`; 1 before the first batch.
        start: The value that the first batch gave the step, same shape.
    """

    def __init__(self, observer: RangeObserver, weight: Tensor | None = None) -> None:
        """Creates the parameter at its final shape, so that an optimizer can take it before the first batch.

        Args:
            observer: The estimator of the range of the first batch.
            weight: The weight that is quantized; None for an activation.
        """
        super().__init__(observer, weight)
        self._is_weight = weight is not None
        self._is_new = False
        self.step = nn.Parameter(torch.ones_like(self.scale))
        self.start = torch.ones_like(self.scale)

    def observe(self, x: Tensor) -> None:
        """Initializes step and zero point from `x`; later calls change nothing, because the loss trains the step."""
        if self.known:
            return
        self.observer(x)
        low, high = self.observer.running_range()
        self.initialize(x, low, high)
        self.observer.reset()

    def initialize(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Sets the step from the mean magnitude of `x`, and the zero point from its range `low` to `high`."""
        _, zero_point = choose_qparams(low, high, self.storage, self.spec.scheme)
        positive = self.quant_max - zero_point.reshape(-1)
        rows = x.reshape(1, -1) if self.ch_axis < 0 else x.transpose(0, self.ch_axis).flatten(1)
        magnitude = rows.abs().mean(1)
        step = 2 * magnitude / torch.sqrt(positive.clamp(min=1).to(x.dtype))
        self.start = torch.where(step > 0, step, torch.ones_like(step)).to(self.step.dtype)
        with torch.no_grad():
            self.step.copy_(self.start)
        self.zero_point = zero_point.reshape(-1).to(torch.int32)
        self.known = self._is_new = True

    def take_new(self) -> bool:
        """Returns whether the step was initialized since the last call."""
        is_new, self._is_new = self._is_new, False
        return is_new

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds only a part of the step; the step is whole only while the model runs."""
        return isinstance(self.step, DTensor)

    def restart(self) -> None:
        """Moves a sharded step as if it had started at `start` instead of 1.

        The value that `initialize` writes into the step is lost, because the step is then a temporary whole copy.
        """
        assert isinstance(self.step, DTensor)
        mesh, placements = self.step.device_mesh, self.step.placements
        with torch.no_grad():
            self.step.add_(distribute_tensor(self.start - 1.0, mesh, placements, src_data_rank=None))

    def quantize(self, x: Tensor) -> Tensor:
        """Rounds `x` with the step and zero point; gradients reach `x` and the step."""
        shape = [1] * x.ndim
        if self.ch_axis >= 0:
            shape[self.ch_axis] = -1
        zero_point = self.zero_point.to(x.dtype).reshape(shape)
        low, high = self.quant_min - zero_point, self.quant_max - zero_point
        features = x.numel() if self._is_weight or not x.ndim else x[0].numel()
        result: Tensor = _LearnedStep.apply(  # type: ignore[no-untyped-call]
            x, self._positive_step().reshape(shape), low, high, features
        )
        return result

    def skip(self, x: Tensor) -> Tensor:
        """Returns `x` unchanged.

        With several ranks, the step gets gradients of zero, because DistributedDataParallel waits for gradients.
        """
        if not several_ranks():
            return x
        result: Tensor = _Linked.apply(x, self.step)  # type: ignore[no-untyped-call]
        return result

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        self.take_step()
        return super().calculate_qparams()

    def check(self) -> None:
        """Checks that the step is finite.

        Raises:
            CalibrationError: It is not finite.
        """
        self.take_step()
        super().check()

    def take_step(self) -> None:
        """Sets the scale to the trained step."""
        self.scale = self._positive_step().detach()

    def _positive_step(self) -> Tensor:
        """Returns the step as the device will have it, a float16 number; its gradient is that of the parameter."""
        step = self.step.full_tensor() if isinstance(self.step, DTensor) else self.step
        step = step.abs().clamp(min=_SMALLEST)
        return step + (round_up_to_half(step) - step).detach()


class _Linked(torch.autograd.Function):
    """A function that returns the first of two tensors; the second gets gradients of zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linked: Tensor) -> Tensor:
        ctx.save_for_backward(linked)
        # Not a view: FSDP2 warns of outputs that are.
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (linked,) = ctx.saved_tensors
        return gradient, torch.zeros_like(linked)


class _LearnedStep(torch.autograd.Function):
    """The function `clamp(round(x / step), low, high) * step` with the gradients of the paper."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: Tensor, high: Tensor, features: int) -> Tensor:
        scaled = x / step
        ctx.features = features
        ctx.save_for_backward(scaled, low, high)
        ctx.step_shape = step.shape
        return scaled.clamp(low, high).round_() * step

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled, low, high = ctx.saved_tensors
        inside = (scaled >= low) & (scaled <= high)
        clipped = scaled.clamp(low, high)
        per_value = torch.where(inside, clipped.round() - scaled, clipped.round())
        axes = [axis for axis, extent in enumerate(ctx.step_shape) if extent == 1]
        damping = torch.rsqrt(ctx.features // math.prod(ctx.step_shape) * high.clamp(min=1))
        summed = (gradient * per_value).sum(axes, keepdim=True) if axes else gradient * per_value
        return gradient * inside, summed * damping, None, None, None
