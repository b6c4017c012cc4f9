"""Fake quantizers: a range estimator, and rounding to the grid that it gives."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase, FixedQParamsFakeQuantize

from coreml_quantizer.errors import CalibrationError
from coreml_quantizer.estimators import MinMaxObserver, MovingAverageObserver, RangeObserver, extremes, qscheme_of
from coreml_quantizer.lifecycle import refuse_export
from coreml_quantizer.qat.functional import Interval, fake_quantize_channels, fake_quantize_tensor
from coreml_quantizer.qat.numbers import (
    Singles,
    choose_grid,
    choose_grids,
    eager_on_cpu,
    extremes_on_cpu,
    move_range,
    move_ranges,
)
from coreml_quantizer.qat.schedule import Scheduled, nothing
from coreml_quantizer.qparams import choose_qparams, choose_qparams_on_cpu
from coreml_quantizer.specs import INT8, UINT8, IntegerStorage, Milestones, PerChannel, Scheme, TensorSpec

Mode = bool | None
"""Whether the model trains; None until somebody says so."""


class FakeQuantizer(Scheduled, FakeQuantizeBase):
    """Base of all fake quantizers: the switches, and what torchao's conversion reads.

    Attributes:
        scale: float32, shape `(1,)` or `(channels,)`.
        zero_point: int32, same shape.
        tensor_name: Graph name of the tensor, for messages.
        description: `describe()` in UTF-8, by which checkpoints of another configuration are recognized.
        rounded: Whether rounding was ever on.
        RESIZED: Buffers whose shape is known from the first batch on.
    """

    RESIZED: ClassVar[tuple[str, ...]] = ("scale", "zero_point")

    scale: Tensor
    zero_point: Tensor
    description: Tensor
    observer_enabled: Tensor
    fake_quant_enabled: Tensor

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.dtype, self.qscheme = spec.storage.dtype, qscheme_of(spec)
        self.ch_axis = spec.granularity.axis if isinstance(spec.granularity, PerChannel) else -1
        self.quant_min, self.quant_max = spec.storage.quant_min, spec.storage.quant_max
        self.tensor_name = "a tensor"
        self.register_buffer("description", torch.tensor(list(self.describe().encode()), dtype=torch.uint8))
        self.observes = self.quantizes = True
        self.leads = False
        self.known = True
        self.schedule(spec.training.milestones)

    @property
    def storage(self) -> IntegerStorage:
        """The integers that are stored."""
        assert isinstance(self.spec.storage, IntegerStorage)
        return self.spec.storage

    def schedule(self, milestones: Milestones | None) -> None:
        """Sets the milestones; with any, nothing is observed or quantized before they say so."""
        super().schedule(milestones)
        self.rounded = milestones is None
        if milestones is not None:
            self.enable_observer(False)
            self.enable_fake_quant(False)

    def enable_observer(self, enabled: bool = True) -> None:
        """Lets the range follow the values from now on, or keeps it."""
        self.observes = enabled
        self.observer_enabled = torch.full_like(self.observer_enabled, enabled)

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Rounds from now on, or passes values through."""
        self.quantizes = enabled
        self.rounded = self.rounded or enabled
        self.fake_quant_enabled = torch.full_like(self.fake_quant_enabled, enabled)

    def switch(self, observes: bool, quantizes: bool) -> None:
        """Sets both at once."""
        self.enable_observer(observes)
        self.enable_fake_quant(quantizes)

    def actions(self) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None], Callable[[], None]]:
        return self.enable_observer, self.enable_fake_quant, lambda: self.enable_observer(False), nothing

    def switches(self) -> Mapping[str, str]:
        names = {"observer_enabled": "observes", "fake_quant_enabled": "quantizes", **super().switches()}
        return MappingProxyType(names)

    def describe(self) -> str:
        """Returns what the state of this quantizer is of."""
        spec = self.spec
        return f"{type(self).__name__} {spec.storage.name} {spec.scheme.value} {spec.granularity}"

    def mismatch(self, saved: Tensor | None) -> str | None:
        """Returns how the `description` of a checkpoint differs, or None."""
        if saved is None or torch.equal(saved.cpu(), self.description.cpu()):
            return None
        return f"'{self.tensor_name}' was {bytes(saved.tolist()).decode()} and is {self.describe()} now"

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        problem = self.mismatch(state_dict.get(prefix + "description"))
        if problem is not None:
            error_msgs.append(f"{problem}. Prepare the model with the configuration of the checkpoint.")
            return
        for name in self.RESIZED:
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def sibling(self, observes: bool) -> "Follower":
        """Returns a quantizer to the same grid, for another tensor of the sharing group.

        As in coremltools, tensors of a group train one range: each that can hold new values is observed.
        """
        self.leads = True
        return Follower(self, observes)

    def quantize(self, x: Tensor) -> Tensor:
        """Rounds `x` to the grid as it is."""
        raise NotImplementedError

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        """Returns scale (float32) and zero point (int64) as trained, each of shape `(1,)` or `(channels,)`.

        Raises:
            CalibrationError: Nothing was observed, or not-a-number or infinite values were.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        switched = [name for name in ("observes", "quantizes") if getattr(self, name)]
        return f"{self.tensor_name}, {self.spec.storage.name}, {' and '.join(switched) or 'off'}"


class FakeQuantize(FakeQuantizer):
    """Rounds to the grid of a range that an estimator follows."""

    def __init__(self, observer: RangeObserver, weight: Tensor | None = None) -> None:
        """Creates all state at its final shape, so that checkpoints of any moment fit.

        Args:
            observer: Follows the range.
            weight: What is quantized, if it is a weight.
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
        """Whether what `x` would be clamped to is clamped to in quantizing it."""
        return self.clip is not None and self.quantizes and self.known

    def forward(self, x: Tensor, mode: Mode = None) -> Tensor:
        """Fake-quantizes `x`, of any shape and float dtype; in eval mode (`mode` False) the range stays as it is."""
        refuse_export()
        if self.observes and x.numel() and (mode is not False or not self.known):
            self.observe(x.detach())
        return self.quantize(x) if self.quantizes and self.known else self.skip(x)

    def skip(self, x: Tensor) -> Tensor:
        """Returns `x` as it is."""
        return x

    def observe(self, x: Tensor) -> None:
        """Moves the range by `x`.

        Raises:
            CalibrationError: `x` contains not-a-number or infinite values. Seen at once in eager mode on a CPU;
                elsewhere `quantizer.step()` looks every 100 steps.
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
        """Whether smallest and largest values are all that the estimator looks at."""
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
        """Moves the ranges by extremes of shape (channels,), eagerly on a CPU.

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
        """Returns whether the grid leaves out values between these, shape (channels,)."""
        scale, zero_point = self.scale.numpy(), self.zero_point.numpy()
        lowest, highest = (self.quant_min - 0.5 - zero_point) * scale, (self.quant_max + 0.5 - zero_point) * scale
        return bool((low < lowest).any() or (high > highest).any())

    def refresh(self) -> None:
        """Takes the grid of the range that the estimator has now."""
        low, high = self.observer.running_range()
        choose = choose_qparams_on_cpu if eager_on_cpu(low) else choose_qparams
        self.set_qparams(*choose(low, high, self.storage, self.spec.scheme))

    def set_qparams(self, scale: Tensor, zero_point: Tensor) -> None:
        """Makes these the grid: any shapes of as many elements as there are channels."""
        if self.scale.numel() == scale.numel():
            self.scale.copy_(scale.reshape(-1))
            self.zero_point.copy_(zero_point.reshape(-1))
        else:
            self.scale, self.zero_point = scale.reshape(-1), zero_point.reshape(-1).to(torch.int32)
        self.known = True

    def switches(self) -> Mapping[str, str]:
        return MappingProxyType({"range_known": "known", **super().switches()})

    def check(self) -> None:
        """Raises CalibrationError when the range is not finite."""
        if self.known and not math.isfinite(float(self.scale.sum())):
            raise CalibrationError(self._why_no_range())

    def _why_no_range(self) -> str:
        return (
            f"'{self.tensor_name}' took not-a-number or infinite values in training, so it has no range. Look for "
            "a loss that diverged (lower the learning rate, clip gradients) or for an input that is not finite."
        )

    def quantize(self, x: Tensor) -> Tensor:
        """Rounds `x` to the grid as it is."""
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


class FixedFakeQuantize(FakeQuantizer):
    """Rounds to a grid that the operator before it decides, such as that of a sigmoid."""

    def __init__(self, given: FixedQParamsFakeQuantize) -> None:
        """Takes over the grid of torchao's module for it."""
        storage = next(s for s in (UINT8, INT8) if s.dtype is given.dtype)
        super().__init__(TensorSpec(storage, Scheme.AFFINE))
        self.register_buffer("scale", given.scale.float().reshape(1))
        self.register_buffer("zero_point", given.zero_point.to(torch.int32).reshape(1))

    def forward(self, x: Tensor, mode: Mode = None) -> Tensor:
        """Fake-quantizes `x`, of any shape and float dtype."""
        refuse_export()
        return self.quantize(x) if self.quantizes else x

    def quantize(self, x: Tensor) -> Tensor:
        """Rounds `x` to the grid."""
        return fake_quantize_tensor(x, self.scale, self.zero_point, self.quant_min, self.quant_max)

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        return self.scale, self.zero_point.to(torch.int64)


class Follower(FakeQuantizeBase):
    """Rounds to the grid of another fake quantizer, which owns all state."""

    def __init__(self, leader: FakeQuantizer, observes: bool) -> None:
        super().__init__()
        # In a tuple, so that its state is saved and moved once.
        self._leader = (leader,)
        self._observes = observes
        self.tensor_name = leader.tensor_name
        for name in ("dtype", "qscheme", "ch_axis", "quant_min", "quant_max"):
            setattr(self, name, getattr(leader, name))

    @property
    def leader(self) -> FakeQuantizer:
        """The quantizer whose grid this is."""
        return self._leader[0]

    def forward(self, x: Tensor, mode: Mode = None) -> Tensor:
        """Fake-quantizes `x`, and lets its values move the common range if they can be new to it."""
        refuse_export()
        leader = self.leader
        if self._observes:
            result: Tensor = leader(x, mode)
            return result
        return leader.quantize(x) if leader.quantizes and leader.known else x

    def calculate_qparams(self, **arguments: Any) -> tuple[Tensor, Tensor]:
        """Returns those of the leader."""
        return self.leader.calculate_qparams(**arguments)
