"""Registry of MIL operations: (operation type, earliest opset) -> torch function.

The signature of a function says how its parameters reach it:

==========================  =================================================================================
annotation                  what the function gets
==========================  =================================================================================
``torch.Tensor``            the tensor, half precision held in float32
``Tensors``                 every tensor bound to a variadic parameter
``int float bool str``      a Python scalar
``Ints Floats Bools``       a tuple of Python scalars
``Outputs``                 the declared types of the operation's outputs
``Blocks``                  the nested blocks, each callable with its inputs and returning a tuple of its outputs
``State``                   a state, read and written through its attribute ``value``
``Any``                     the value as it is
==========================  =================================================================================

Each may be ``| None`` with a default. Scalars and tuples that are constant in the program are converted once.
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import torch

from partitioner.host.mil.model import Opset
from partitioner.host.mil.types import ValueType


@dataclass
class State:
    """A value that outlives a run.

    Attributes:
        value: Its present content, in the declared type's compute type.
    """

    value: torch.Tensor


class BlockCall(Protocol):
    """A nested block, ready to run."""

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Runs the block."""


Tensors: TypeAlias = tuple[torch.Tensor, ...]
Ints: TypeAlias = tuple[int, ...]
Floats: TypeAlias = tuple[float, ...]
Bools: TypeAlias = tuple[bool, ...]
Outputs: TypeAlias = tuple[ValueType, ...]
Blocks: TypeAlias = tuple[BlockCall, ...]

Function = TypeVar("Function", bound=Callable[..., Any])


def _scalar(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def to_scalar(value: Any) -> Any:
        return convert(value.item() if isinstance(value, torch.Tensor) else value)

    return to_scalar


def _tuple(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def to_tuple(value: Any) -> Any:
        items = value.flatten().tolist() if isinstance(value, torch.Tensor) else value
        return tuple(convert(item) for item in items)

    return to_tuple


_CONVERTERS: dict[Any, Callable[[Any], Any] | None] = {
    torch.Tensor: None,
    Tensors: None,
    State: None,
    Any: None,
    str: None,
    int: _scalar(int),
    float: _scalar(float),
    bool: _scalar(bool),
    Ints: _tuple(int),
    Floats: _tuple(float),
    Bools: _tuple(bool),
}
"""Annotation -> the conversion of a constant value; None leaves the value as it is."""


@dataclass(frozen=True)
class Param:
    """One parameter of an operation's function."""

    name: str
    required: bool
    variadic: bool
    convert: Callable[[Any], Any] | None


@dataclass(frozen=True)
class OpDef:
    """One registered operation.

    Attributes:
        type: MIL operation type.
        since: Earliest opset in which this definition holds.
        function: Computes the outputs; a tuple when there is more than one.
        exact: Every output element is one of the inputs' elements or exactly representable in the declared type, so
            that results need no rounding.
        pure: The result depends on the inputs alone.
        params: MIL parameters that the function takes.
        outputs_param: Name of the parameter annotated `Outputs`, if any.
        blocks_param: Name of the parameter annotated `Blocks`, if any.
    """

    type: str
    since: Opset
    function: Callable[..., Any]
    exact: bool
    pure: bool
    params: dict[str, Param]
    outputs_param: str | None
    blocks_param: str | None


class OpRegistry:
    """Definitions of operations by type and opset."""

    def __init__(self) -> None:
        self._definitions: dict[str, dict[Opset, OpDef]] = {}

    def add(self, definition: OpDef) -> None:
        """Adds a definition.

        Raises:
            ValueError: There is one for the same type and opset.
        """
        versions = self._definitions.setdefault(definition.type, {})
        if definition.since in versions:
            raise ValueError(f"operation {definition.type!r} is already defined for {definition.since.name}")
        versions[definition.since] = definition

    def remove(self, op_type: str, since: Opset) -> None:
        """Removes a definition, for example one that a test added.

        Raises:
            KeyError: There is none.
        """
        del self._definitions[op_type][since]
        if not self._definitions[op_type]:
            del self._definitions[op_type]

    def find(self, op_type: str, opset: Opset) -> OpDef | None:
        """Returns the newest definition of ``op_type`` that is not above ``opset``, or None."""
        versions = self._definitions.get(op_type, {})
        usable = [since for since in versions if since <= opset]
        return versions[max(usable)] if usable else None

    def types(self) -> frozenset[str]:
        """Every operation type that has a definition."""
        return frozenset(self._definitions)

    def __iter__(self) -> Iterator[OpDef]:
        for versions in self._definitions.values():
            yield from versions.values()


OPS = OpRegistry()

SEQUENTIAL: dict[str, Callable[..., Any]] = {}
"""Operation type -> function that computes it with partial sums in half precision."""


def register_sequential(op_type: str) -> Callable[[Function], Function]:
    """Defines how the policy ``sequential16`` computes an operation; it takes the operation's parameters.

    Raises:
        ValueError: There is a definition already.
    """

    def decorate(function: Function) -> Function:
        if op_type in SEQUENTIAL:
            raise ValueError(f"operation {op_type!r} already has a sequential definition")
        SEQUENTIAL[op_type] = function
        return function

    return decorate


def register_op(
    *op_types: str, since: Opset = Opset.IOS15, exact: bool = False, pure: bool = True
) -> Callable[[Function], Function]:
    """Defines MIL operations that come with the host; `partitioner.host.custom_ops` documents the arguments.

    Raises:
        ValueError: The operation is already defined for that opset.
        TypeError: A parameter's annotation is none of those in this module's table.
    """

    def decorate(function: Function) -> Function:
        for op_type in op_types:
            OPS.add(make_definition(op_type, function, since=since, exact=exact, pure=pure))
        return function

    return decorate


def make_definition(op_type: str, function: Callable[..., Any], *, since: Opset, exact: bool, pure: bool) -> OpDef:
    """Builds a definition from a function's signature.

    Raises:
        TypeError: A parameter has no annotation or one that is not supported.
    """
    hints = typing.get_type_hints(function)
    params: dict[str, Param] = {}
    special: dict[Any, str] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = _without_none(hints.get(name))
        if annotation in (Outputs, Blocks):
            special[annotation] = name
            continue
        if annotation not in _CONVERTERS:
            raise TypeError(f"{op_type}: parameter {name!r} has the annotation {annotation}, which ops cannot take")
        required = parameter.default is inspect.Parameter.empty
        params[name] = Param(name, required, annotation == Tensors, _CONVERTERS[annotation])
    return OpDef(op_type, since, function, exact, pure, params, special.get(Outputs), special.get(Blocks))


def _without_none(annotation: Any) -> Any:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        rest = [argument for argument in typing.get_args(annotation) if argument is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation
