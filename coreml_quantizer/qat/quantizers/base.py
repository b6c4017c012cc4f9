"""The base of fake quantizers, and the one that follows another."""

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
