"""Types of MIL values."""

import math
from dataclasses import dataclass
from typing import TypeAlias

from partitioner.host.mil.dtypes import DType


@dataclass(frozen=True)
class TensorType:
    """A tensor, or a scalar when the shape is empty.

    Attributes:
        dtype: Element type.
        shape: Sizes, None where unknown until run time; None as a whole when the rank is unknown.
    """

    dtype: DType
    shape: tuple[int | None, ...] | None

    def fixed_shape(self) -> tuple[int, ...] | None:
        """Returns the shape when every size is known, else None."""
        if self.shape is None or any(size is None for size in self.shape):
            return None
        return tuple(size for size in self.shape if size is not None)

    def count(self) -> int | None:
        """Number of elements when every size is known, else None."""
        shape = self.fixed_shape()
        return None if shape is None else math.prod(shape)

    def __str__(self) -> str:
        if self.shape is None:
            return f"tensor<{self.dtype.name}, [...]>"
        return f"tensor<{self.dtype.name}, [{', '.join('?' if size is None else str(size) for size in self.shape)}]>"


@dataclass(frozen=True)
class ListType:
    """A list of values of one type; ``length`` is None when unknown until run time."""

    element: "ValueType"
    length: int | None

    def __str__(self) -> str:
        return f"list<{self.element}, {'?' if self.length is None else self.length}>"


@dataclass(frozen=True)
class TupleType:
    """A tuple of values."""

    elements: "tuple[ValueType, ...]"

    def __str__(self) -> str:
        return f"tuple<{', '.join(map(str, self.elements))}>"


@dataclass(frozen=True)
class DictType:
    """A dictionary."""

    key: "ValueType"
    value: "ValueType"

    def __str__(self) -> str:
        return f"dict<{self.key}, {self.value}>"


@dataclass(frozen=True)
class StateType:
    """A state: a value that outlives a run and that operations read and write."""

    wrapped: TensorType

    def __str__(self) -> str:
        return f"state<{self.wrapped}>"


ValueType: TypeAlias = TensorType | ListType | TupleType | DictType | StateType
