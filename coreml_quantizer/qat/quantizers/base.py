"""The base class of fake quantizers, and the fake quantizer that follows another one."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase

from coreml_quantizer.estimators import qscheme_of
from coreml_quantizer.process.lifecycle import refuse_export
from coreml_quantizer.qat.schedule import Mode, Scheduled, nothing
from coreml_quantizer.specs import IntegerStorage, Milestones, PerChannel, TensorSpec


class FakeQuantizer(Scheduled, FakeQuantizeBase):
    """The base class of all fake quantizers: switches, checkpoints, and the attributes that torchao's conversion reads.

    Attributes:
        scale: float32, shape `(1,)` or `(channels,)`.
        zero_point: int32, same shape.
        tensor_name: Graph name of the tensor, for messages.
        description: `describe()` in UTF-8; it shows when a checkpoint is of another configuration.
        rounded: Whether rounding was ever on.
        RESIZED: Buffers whose shape is known only from the first batch on.
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
        """The integer type that values are stored in."""
        assert isinstance(self.spec.storage, IntegerStorage)
        return self.spec.storage

    def schedule(self, milestones: Milestones | None) -> None:
        """Sets the milestones; if there are any, observing and rounding are off until they turn them on."""
        super().schedule(milestones)
        self.rounded = milestones is None
        if milestones is not None:
            self.enable_observer(False)
            self.enable_fake_quant(False)

    def enable_observer(self, enabled: bool = True) -> None:
        """Lets the range follow the values from now on; keeps the range if `enabled` is False."""
        self.observes = enabled
        self.observer_enabled = torch.full_like(self.observer_enabled, enabled)

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Rounds values from now on; passes them through if `enabled` is False."""
        self.quantizes = enabled
        self.rounded = self.rounded or enabled
        self.fake_quant_enabled = torch.full_like(self.fake_quant_enabled, enabled)

    def switch(self, observes: bool, quantizes: bool) -> None:
        """Sets both switches: whether the range follows the values, and whether values are rounded."""
        self.enable_observer(observes)
        self.enable_fake_quant(quantizes)

    def actions(self) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None], Callable[[], None]]:
        return self.enable_observer, self.enable_fake_quant, lambda: self.enable_observer(False), nothing

    def switches(self) -> Mapping[str, str]:
        names = {"observer_enabled": "observes", "fake_quant_enabled": "quantizes", **super().switches()}
        return MappingProxyType(names)

    def describe(self) -> str:
        """Returns the kind, storage, scheme and granularity of this quantizer; a checkpoint must have the same."""
        spec = self.spec
        return f"{type(self).__name__} {spec.storage.name} {spec.scheme.value} {spec.granularity}"

    def mismatch(self, saved: Tensor | None) -> str | None:
        """Returns how the `description` in a checkpoint differs, None when it does not or is missing."""
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
        """Returns a fake quantizer with the same scale and zero point, for another tensor of the sharing group.

        As in coremltools, the tensors of a group train one range: every tensor that can hold new values is observed.

        Args:
            observes: Whether the tensor can hold values that are new to the group.
        """
        self.leads = True
        return Follower(self, observes)

    def quantize(self, x: Tensor) -> Tensor:
        """Rounds `x` with the current scale and zero point."""
        raise NotImplementedError

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        """Returns the trained scale (float32) and zero point (int64), each of shape `(1,)` or `(channels,)`.

        Raises:
            CalibrationError: Nothing was observed, or not-a-number or infinite values were.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        switched = [name for name in ("observes", "quantizes") if getattr(self, name)]
        return f"{self.tensor_name}, {self.spec.storage.name}, {' and '.join(switched) or 'off'}"


class Follower(FakeQuantizeBase):
    """A fake quantizer that rounds with the scale and zero point of another one, its leader, which owns all state."""

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
        """The fake quantizer whose scale and zero point this one uses."""
        return self._leader[0]

    def forward(self, x: Tensor, mode: Mode = None) -> Tensor:
        """Fake-quantizes `x`; its values move the common range if they can be new to it."""
        refuse_export()
        leader = self.leader
        if self._observes:
            result: Tensor = leader(x, mode)
            return result
        return leader.quantize(x) if leader.quantizes and leader.known else x

    def calculate_qparams(self, **arguments: Any) -> tuple[Tensor, Tensor]:
        """Returns the scale and zero point of the leader."""
        return self.leader.calculate_qparams(**arguments)
