"""The base of all range estimators: torchao observers that find a range from the values they see."""

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchao.quantization.pt2e.observer import ObserverBase

from coreml_quantizer.errors import CalibrationError
from coreml_quantizer.estimators.arguments import Argument
from coreml_quantizer.estimators.qparams import choose_qparams
from coreml_quantizer.process.lifecycle import refuse_export
from coreml_quantizer.specs import IntegerStorage, PerChannel, Scheme, TensorSpec

State = dict[str, Tensor]
"""The statistics of an observer: its buffers by name."""

_QSCHEMES = MappingProxyType(
    {
        (Scheme.SYMMETRIC, False): torch.per_tensor_symmetric,
        (Scheme.AFFINE, False): torch.per_tensor_affine,
        (Scheme.SYMMETRIC, True): torch.per_channel_symmetric,
        (Scheme.AFFINE, True): torch.per_channel_affine,
    }
)


def qscheme_of(spec: TensorSpec) -> torch.qscheme:
    """Returns torch's name for the scheme and granularity of `spec`."""
    return _QSCHEMES[spec.scheme, isinstance(spec.granularity, PerChannel)]


class RangeObserver(ObserverBase):
    """Base class of the estimators. A subclass keeps its statistics in buffers, and updates, reads and merges them.

    Attributes:
        ARGUMENTS: Arguments of its constructor besides the spec, by name; configurations are checked against them.
        PER_CHANNEL: Whether it can estimate a range for every channel.
        tensor_name: Graph name of the observed tensor, for messages.
        module_name: Path of the module that makes it; "" for the model itself, and for a tensor that no module makes.
        min_val: Running minimum, float32, shape `()` or `(channels,)`.
        max_val: Running maximum, same shape.
        common: Statistics that all processes had after their last merge; None before.
    """

    ARGUMENTS: ClassVar[Mapping[str, Argument]] = MappingProxyType({})
    PER_CHANNEL: ClassVar[bool] = True
    UNNAMED: ClassVar[str] = "a tensor"

    min_val: Tensor
    max_val: Tensor

    def __init__(self, spec: TensorSpec, **_: Any) -> None:
        """Creates an observer for `spec`; torchao passes the fields of its own spec, which have the same values."""
        super().__init__(dtype=spec.storage.dtype)
        self.spec = spec
        self.qscheme = qscheme_of(spec)
        self.quant_min = spec.storage.quant_min
        self.quant_max = spec.storage.quant_max
        self.ch_axis = spec.granularity.axis if isinstance(spec.granularity, PerChannel) else -1
        self.tensor_name = self.UNNAMED
        self.module_name = ""
        self._weight: tuple[Tensor, ...] = ()
        self._observes = True
        self.common: State | None = None
        # Those of a sharing group that observe, once it has several; a plain list, so that torch.nn.Module does not
        # register them twice.
        self._members: list[RangeObserver] | None = None
        self.register_buffer("min_val", torch.tensor(torch.inf))
        self.register_buffer("max_val", torch.tensor(-torch.inf))

    @property
    def constant(self) -> bool:
        """Whether this observer watches a weight, which it reads only when the scale is computed."""
        return bool(self._weight)

    @property
    def storage(self) -> IntegerStorage:
        """The integer type that the range is for."""
        assert isinstance(self.spec.storage, IntegerStorage), "a lookup table has no scale"
        return self.spec.storage

    @property
    def observes(self) -> bool:
        """Whether calibration changes the statistics of this observer."""
        return self._observes and not self._weight

    def forward(self, x: Tensor) -> Tensor:
        """Updates the statistics with `x` (any float dtype and shape) and returns `x` itself.

        Raises:
            QuantizerError: torch.export is tracing.
        """
        refuse_export()
        if self._observes and not self._weight and x.numel():
            self._observe(x.detach())
        return x

    def sibling(self, observes: bool) -> "RangeObserver":
        """Returns another observer of the same sharing group, for another tensor.

        Each keeps the statistics of its own tensor, and all return the qparams of the union of their ranges. One
        moving average over several tensors would drift towards their mean and clip the largest.

        Args:
            observes: Whether the tensor can hold values that no other tensor of the group holds. The output of a pool
                or a view cannot.
        """
        if self._members is None:
            self._members = [self]
        twin = copy.copy(self)
        twin._buffers, twin._parameters, twin._modules = dict(self._buffers), {}, {}
        twin.reset()
        twin._observes = observes
        if observes:
            self._members.append(twin)
        return twin

    def watch_weight(self, weight: Tensor) -> None:
        """Ties this observer to `weight`, from which it gets its range without any calibration sample.

        A weight does not change while a model is calibrated: it is read once, at conversion.
        """
        # In a tuple, because torch.nn.Module would register a bare parameter as one of its own.
        self._weight = (weight,)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Returns scale (float32) and zero point (int64), each of shape `(1,)` or `(channels,)`.

        Raises:
            CalibrationError: Nothing was observed, or not-a-number or infinite values were.
        """
        for weight in self._weight:
            self.reset()
            if weight.numel():
                self._observe(weight.detach())
        ranges = [member.estimate() for member in self._members or (self,)]
        low = torch.stack([low for low, _ in ranges]).amin(0)
        high = torch.stack([high for _, high in ranges]).amax(0)
        scale, zero_point = choose_qparams(low, high, self.storage, self.spec.scheme)
        return scale.reshape(-1), zero_point.reshape(-1)

    def estimate(self) -> tuple[Tensor, Tensor]:
        """Returns the smallest and the largest value to represent, float32, shape `()` or `(channels,)`.

        Raises:
            CalibrationError: Nothing was observed, or not-a-number or infinite values were.
        """
        if not torch.isfinite(self.min_val).all() or not torch.isfinite(self.max_val).all():
            raise CalibrationError(self.why_no_range())
        return self._estimate()

    def for_training(self) -> "RangeObserver":
        """Returns the estimator that replaces this one when an activation is trained."""
        return self

    def running_range(self) -> tuple[Tensor, Tensor]:
        """Returns what `estimate` returns, without the check that it is finite: nothing waits for the device."""
        return self._estimate()

    def reset(self) -> None:
        """Forgets everything observed."""
        self.common = None
        self.min_val = torch.full_like(self.min_val, torch.inf)
        self.max_val = torch.full_like(self.max_val, -torch.inf)

    def state(self) -> State:
        """Returns a copy of the statistics."""
        return {name: value.clone() for name, value in self.named_buffers(recurse=False)}

    def load_state(self, state: State) -> None:
        """Replaces the statistics by those of another observer of the same kind."""
        for name, value in state.items():
            setattr(self, name, value.to(getattr(self, name).device, copy=True))

    def merge(self, states: Sequence[State]) -> State:
        """Returns the statistics of all values that the observers of `states` saw, in that order.

        Args:
            states: At least one, each of an observer that saw something.
        """
        raise NotImplementedError

    def since(self, state: State, common: State) -> State:
        """Returns the statistics `state` without `common`, which all processes had after the last merge.

        Extremes need no subtraction: merging the same extremes twice changes nothing. A moving average goes on from the
        common value.
        """
        return state

    def _observe(self, x: Tensor) -> None:
        low, high = extremes(x, self.ch_axis)
        self.update_range(low.to(self.min_val.dtype), high.to(self.max_val.dtype))

    def update_range(self, low: Tensor, high: Tensor) -> None:
        """Updates the statistics with the extremes of a batch, float32, shape `()` or `(channels,)`."""
        raise NotImplementedError

    def _estimate(self) -> tuple[Tensor, Tensor]:
        return self.min_val, self.max_val

    def why_no_range(self) -> str:
        """Returns a message that names the tensor and says why it has no range."""
        if self.constant:
            return f"The weight '{self.tensor_name}' is empty, or contains not-a-number or infinite values."
        name = f"'{self.tensor_name}'" + (f" in module '{self.module_name}'" if self.module_name else "")
        if bool((self.min_val > self.max_val).any()):
            return (
                f"{name} was never observed, so it has no range. Run the prepared model on "
                "representative inputs (at least one non-empty batch) before convert_pt2e, or quantize weights alone, "
                "which needs none (activation_dtype=torch.float32, or activation=None in a LayerConfig)."
            )
        return (
            f"{name} took not-a-number or infinite values during calibration. Find the input that "
            "makes them, or leave the module in floating point: None under its name in the configuration."
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accepts statistics of another shape: an observer that saw nothing does not know the number of channels."""
        for name, value in self.named_buffers(recurse=False):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, torch.empty_like(saved, device=value.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.tensor_name}, {self.spec.storage.name} {self.spec.scheme.value}"


def extremes(x: Tensor, ch_axis: int) -> tuple[Tensor, Tensor]:
    """Returns minimum and maximum of `x` for each index of `ch_axis`, or over all of `x` if that is -1.

    Not-a-number propagates.
    """
    if ch_axis < 0:
        return torch.aminmax(x)
    low, high = torch.aminmax(channels_first(x, ch_axis), dim=1)
    return low, high


def channels_first(x: Tensor, ch_axis: int) -> Tensor:
    """Returns `x` in shape (channels, rest), or (1, all) if `ch_axis` is -1."""
    return x.reshape(1, -1) if ch_axis < 0 else x.transpose(0, ch_axis).flatten(1)
