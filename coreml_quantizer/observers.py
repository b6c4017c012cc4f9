"""Observers: collect the range of a tensor during calibration and return its scale and zero point."""

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torchao.quantization.pt2e.observer import ObserverBase

from coreml_quantizer.errors import CalibrationError
from coreml_quantizer.qparams import choose_qparams
from coreml_quantizer.specs import PerChannel, Scheme, TensorSpec

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
    """Base of the observers that keep a running minimum and maximum, per tensor or per channel.

    Attributes:
        tensor_name: Graph name of the observed tensor, for messages.
        constant: True for the observer of a weight, which reads it once, when the scale is asked for.
        min_val: Running minimum, float32, shape `()` or `(channels,)`.
        max_val: Running maximum, same shape.
    """

    UNNAMED = "a tensor"

    min_val: Tensor
    max_val: Tensor

    def __init__(self, spec: TensorSpec, **_: Any) -> None:
        """Creates an observer for `spec`; torchao passes the fields of its own spec again, which say the same."""
        super().__init__(dtype=spec.storage.dtype)
        self.spec = spec
        self.qscheme = qscheme_of(spec)
        self.quant_min = spec.storage.quant_min
        self.quant_max = spec.storage.quant_max
        self.ch_axis = spec.granularity.axis if isinstance(spec.granularity, PerChannel) else -1
        self.tensor_name = self.UNNAMED
        self._weight: tuple[Tensor, ...] = ()
        self._observes = True
        # Shared by all observers of a group, and a plain list so that torch.nn.Module does not register them twice.
        self._members: list[RangeObserver] = [self]
        self.register_buffer("min_val", torch.tensor(torch.inf))
        self.register_buffer("max_val", torch.tensor(-torch.inf))

    @property
    def constant(self) -> bool:
        """Whether this observer watches a weight."""
        return bool(self._weight)

    def forward(self, x: Tensor) -> Tensor:
        """Updates the range with `x` (any float dtype and shape) and returns `x` itself."""
        if self._observes and not self.constant:
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
        twin = copy.copy(self)
        twin._buffers, twin._parameters, twin._modules = dict(self._buffers), {}, {}
        twin.reset()
        twin._observes = observes
        if observes:
            self._members.append(twin)
        return twin

    def watch_weight(self, weight: Tensor) -> None:
        """Makes `weight` what this observer gets its range from, so that it needs no calibration sample.

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
            self._observe(weight.detach())
        for member in self._members:
            member._check_range()
        low = torch.stack([member.min_val for member in self._members]).amin(0)
        high = torch.stack([member.max_val for member in self._members]).amax(0)
        scale, zero_point = choose_qparams(low, high, self.spec.storage, self.spec.scheme)
        return scale.reshape(-1), zero_point.reshape(-1)

    def reset(self) -> None:
        """Forgets everything observed."""
        self.min_val = torch.full_like(self.min_val, torch.inf)
        self.max_val = torch.full_like(self.max_val, -torch.inf)

    def _observe(self, x: Tensor) -> None:
        if x.numel() == 0:
            return
        if self.ch_axis < 0:
            low, high = torch.aminmax(x)
        else:
            low, high = torch.aminmax(x.transpose(0, self.ch_axis).flatten(1), dim=1)
        self._update(low.to(self.min_val.dtype), high.to(self.max_val.dtype))

    def _update(self, low: Tensor, high: Tensor) -> None:
        raise NotImplementedError

    def _check_range(self) -> None:
        if not torch.isfinite(self.min_val).all() or not torch.isfinite(self.max_val).all():
            raise CalibrationError(self._why_no_range())

    def _why_no_range(self) -> str:
        if self.constant:
            return f"The weight '{self.tensor_name}' is empty, or contains not-a-number or infinite values."
        if bool((self.min_val > self.max_val).any()):
            return (
                f"'{self.tensor_name}' was never observed, so it has no range. Run the prepared model on "
                "representative inputs (at least one non-empty batch) before convert_pt2e, or set "
                "activation_dtype=torch.float32 for weight-only quantization, which needs none."
            )
        return (
            f"'{self.tensor_name}' took not-a-number or infinite values during calibration. Find the input that "
            "makes them, or leave the module out with module_name_configs={'<module>': None}."
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accepts ranges per channel into an observer that has seen no channel yet."""
        for name in ("min_val", "max_val"):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.tensor_name}, {self.spec.storage.name} {self.spec.scheme.value}"


class MinMaxObserver(RangeObserver):
    """The smallest and the largest value seen in all of calibration."""

    def _update(self, low: Tensor, high: Tensor) -> None:
        self.min_val = torch.minimum(self.min_val, low)
        self.max_val = torch.maximum(self.max_val, high)


class MovingAverageObserver(RangeObserver):
    """Exponential moving average of each batch's minimum and maximum; the first batch sets both.

    `value += averaging_constant * (batch value - value)`. Source: Jacob et al. 2018, section 3.1.
    """

    def __init__(self, spec: TensorSpec, averaging_constant: float = 0.01, **fields: Any) -> None:
        super().__init__(spec, **fields)
        self.averaging_constant = averaging_constant

    def _update(self, low: Tensor, high: Tensor) -> None:
        # An unset minimum is infinite; the comparison stays on the device.
        unset = self.min_val > self.max_val
        self.min_val = torch.where(unset, low, torch.lerp(self.min_val, low, self.averaging_constant))
        self.max_val = torch.where(unset, high, torch.lerp(self.max_val, high, self.averaging_constant))


ESTIMATORS: Mapping[str, type[RangeObserver]] = MappingProxyType(
    {"min_max": MinMaxObserver, "moving_average": MovingAverageObserver}
)
"""Range estimators by the name that `RangeEstimator.name` gives."""
