"""A Core ML ML Program as plain typed data: functions, blocks, operations, values, and the model's interface.

Everything here is frozen data; `partitioner.host.reading.mil` builds it and
`partitioner.host.execution.executor` runs it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

import torch

from partitioner.host.mil.dtypes import DType
from partitioner.host.mil.types import ValueType

ConstantValue: TypeAlias = "torch.Tensor | str | int | list[ConstantValue] | dict[ConstantValue, ConstantValue]"


class Opset(IntEnum):
    """Versions of the MIL operation set; the number is the one in ``CoreML<n>``."""

    IOS15 = 5
    IOS16 = 6
    IOS17 = 7
    IOS18 = 8
    IOS26 = 9


@dataclass(frozen=True)
class Constant:
    """A constant that an operation carries or names.

    Attributes:
        type: Declared type.
        load: Decodes the value; called when the value is first needed, not while reading.
        stored_bytes: Bytes that the value occupies in the package.
    """

    type: ValueType
    load: Callable[[], ConstantValue] = field(compare=False, repr=False)
    stored_bytes: int


@dataclass(frozen=True)
class Ref:
    """A reference to a value by name."""

    name: str


Binding: TypeAlias = Ref | Constant


@dataclass(frozen=True)
class Value:
    """A named value and its declared type."""

    name: str
    type: ValueType


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        type: MIL operation type, for example ``"conv"``.
        name: Name that the converter gave it; its first output's name when it has none.
        inputs: Parameter -> what is bound to it, more than one binding for variadic parameters.
        attributes: Constants stored beside the inputs. The value of ``const`` is attribute ``val``.
        outputs: The values it defines.
        blocks: Nested blocks of control flow.
    """

    type: str
    name: str
    inputs: Mapping[str, tuple[Binding, ...]]
    attributes: Mapping[str, Constant]
    outputs: tuple[Value, ...]
    blocks: "tuple[Block, ...]"


@dataclass(frozen=True)
class Block:
    """A sequence of operations in execution order."""

    inputs: tuple[Value, ...]
    ops: tuple[Op, ...]
    outputs: tuple[str, ...]

    def walk(self) -> Iterator[Op]:
        """Yields every operation, those of nested blocks too."""
        for op in self.ops:
            yield op
            for block in op.blocks:
                yield from block.walk()


@dataclass(frozen=True)
class Feature:
    """One input, output or state of a function as callers see it.

    Attributes:
        name: Name of the value in the program.
        kind: ``"tensor"``, ``"image"``, ``"dictionary"``, ``"string"``, ``"int64"``, ``"double"`` or ``"state"``.
        dtype: Element type of tensors and states, else None.
        shape: Shape of tensors (None where it is flexible), or None when the rank is unknown.
        default_shape: Shape of an input that is left out, and of a state; None when the model names none.
        shapes: The allowed shapes when they are enumerated, else empty.
        ranges: Smallest and largest size of each dimension when ranges are given (None: unbounded), else empty.
        optional: Whether an input may be left out.
        default: Value that fills an optional input that is left out.
        color: Color layout of images (``"RGB"``, ``"BGR"``, ``"GRAYSCALE"``, ``"GRAYSCALE_FLOAT16"``), else None.
    """

    name: str
    kind: str
    dtype: DType | None
    shape: tuple[int | None, ...] | None
    default_shape: tuple[int, ...] | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()
    optional: bool = False
    default: float = 0.0
    color: str | None = None


@dataclass(frozen=True)
class Function:
    """One entry point.

    Attributes:
        name: Its name; ``"main"`` in models with one function.
        opset: Operation set it is written for.
        parameters: Values that its body takes, states included.
        body: Its operations.
        inputs: The inputs that callers give, in positional order.
        outputs: The outputs that callers get, in positional order.
        states: The states it reads and writes.
    """

    name: str
    opset: Opset
    parameters: tuple[Value, ...]
    body: Block
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    states: tuple[Feature, ...]


@dataclass(frozen=True)
class MilProgram:
    """A whole model.

    Attributes:
        functions: Name -> function.
        default_function: The function that runs when none is named.
    """

    functions: Mapping[str, Function]
    default_function: str
