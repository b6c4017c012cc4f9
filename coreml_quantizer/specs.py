"""Specs of how a tensor or an operator is quantized: frozen, hashable values that need no observers and no torchao."""

from dataclasses import dataclass, replace
from enum import Enum

import torch


class _Value:
    """An immutable value whose copy is the value itself: torchao copies the specs of all observers, which is slow."""

    def __copy__(self) -> "_Value":
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> "_Value":
        return self


@dataclass(frozen=True)
class IntegerStorage(_Value):
    """An integer format that Core ML stores.

    Attributes:
        name: Core ML's name of the type.
        dtype: torch dtype that carries the values; 4-bit values travel in an 8-bit tensor.
        quant_min: Smallest quantized value.
        quant_max: Largest quantized value.
        symmetric_zero_point: Zero point under the symmetric scheme. Source: coremltools' LinearQuantizer,
            0 for signed types, 128 for uint8, the rounded-down middle of the range for uint4.
    """

    name: str
    dtype: torch.dtype
    quant_min: int
    quant_max: int
    symmetric_zero_point: int


INT8 = IntegerStorage("int8", torch.int8, -128, 127, 0)
UINT8 = IntegerStorage("uint8", torch.uint8, 0, 255, 128)
INT4 = IntegerStorage("int4", torch.int8, -8, 7, 0)
UINT4 = IntegerStorage("uint4", torch.uint8, 0, 15, 7)


@dataclass(frozen=True)
class LookupTable(_Value):
    """A weight stored as indices into a table of `2**bits` float16 values: palettization.

    Attributes:
        bits: 1, 2, 3, 4, 6 or 8, which are what Core ML stores.
    """

    bits: int

    @property
    def name(self) -> str:
        """The name that configurations use."""
        return f"lut{self.bits}"

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype that carries the indices."""
        return torch.uint8

    @property
    def quant_min(self) -> int:
        """Smallest index."""
        return 0

    @property
    def quant_max(self) -> int:
        """Largest index."""
        return 2**self.bits - 1


Storage = IntegerStorage | LookupTable


class Scheme(Enum):
    """A quantization scheme: symmetric fixes the zero point, affine derives it from the range."""

    SYMMETRIC = "symmetric"
    AFFINE = "affine"


@dataclass(frozen=True)
class PerTensor(_Value):
    """One scale and zero point for the whole tensor."""


@dataclass(frozen=True)
class PerChannel(_Value):
    """One scale and zero point for each index of `axis`."""

    axis: int = 0


@dataclass(frozen=True)
class PerBlock(_Value):
    """One scale and zero point for each block of `size` inputs, for each index of the channel axis.

    If `size` does not divide the number of inputs, the weight is quantized per channel instead.
    """

    size: int
    axis: int = 0


@dataclass(frozen=True)
class PerChannelGroup(_Value):
    """One scale and zero point, or one table, for each `size` neighbouring indices of the channel axis.

    If `size` does not divide the number of channels, the whole tensor is one group.
    """

    size: int
    axis: int = 0


Granularity = PerTensor | PerChannel | PerBlock | PerChannelGroup


@dataclass(frozen=True)
class RangeEstimator(_Value):
    """The estimator with which calibration turns observed values into a range.

    Attributes:
        name: A key of `estimators.ESTIMATORS`.
        arguments: Keyword arguments of that estimator, as sorted pairs so that the spec stays hashable.
    """

    name: str = "moving_average"
    arguments: tuple[tuple[str, float], ...] = ()


Milestones = tuple[int, int, int, int]
"""Steps at which observers are turned on, fake quantization is turned on, observers are turned off and batch-norm
statistics are frozen; -1 for never."""


@dataclass(frozen=True)
class Training(_Value):
    """Settings of quantization-aware training for a tensor; calibration ignores them.

    Attributes:
        milestones: Steps at which observing and quantizing are turned on and off; None for both all the time.
        learnable: Whether the loss trains the scale, instead of an estimator following the values.
    """

    milestones: Milestones | None = None
    learnable: bool = False


@dataclass(frozen=True)
class TensorSpec(_Value):
    """The quantization of one tensor."""

    storage: Storage
    scheme: Scheme = Scheme.SYMMETRIC
    granularity: Granularity = PerTensor()
    estimator: RangeEstimator = RangeEstimator()
    training: Training = Training()

    def along(self, axis: int) -> "TensorSpec":
        """Returns this spec with its channels on `axis`; a per-tensor spec is returned unchanged."""
        if isinstance(self.granularity, PerTensor):
            return self
        return replace(self, granularity=replace(self.granularity, axis=axis))

    def affine(self) -> "TensorSpec":
        """Returns this spec with the affine scheme."""
        return replace(self, scheme=Scheme.AFFINE)


@dataclass(frozen=True)
class FixedSpec(_Value):
    """A fixed scale and zero point for a tensor whose range is known from its operator, so that nothing is observed.

    `value = (quantized - zero_point) * scale`.
    """

    storage: IntegerStorage
    scale: float
    zero_point: int

    @property
    def non_negative(self) -> bool:
        """Whether the range starts at zero."""
        return self.zero_point == self.storage.quant_min


@dataclass(frozen=True)
class OpSpec(_Value):
    """The quantization of one operator; `None` for input, weight or output leaves it in floating point."""

    input: TensorSpec | None
    weight: TensorSpec | None
    output: TensorSpec | None

    @property
    def quantizes_activations(self) -> bool:
        """Whether inputs or outputs are quantized, not only weights."""
        return self.input is not None or self.output is not None
