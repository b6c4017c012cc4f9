"""Support for programs that are declared in float16 (``model.half()``).

The converters of Core ML Tools assume that values are float32, and write the numbers beside them (an epsilon, a slope)
as float32 too. But an operation refuses arguments of two types. While a conversion runs, such a number therefore gets
the type of the value beside it. So does a float32 value that a converter made of a boolean.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder, Var, types
from coremltools.converters.mil.mil.input_type import TensorInputType

from partitioner.limits import SMALLEST_HALF


def as_half(value: Any) -> Any:
    """Rounds to float16; a number that would become zero becomes the smallest float16 number of its sign.

    Args:
        value: A number or an array.

    Returns:
        A number or array of float16 with the same shape.
    """
    array = np.asarray(value, np.float32)
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    lost = (half == 0) & (array != 0)
    return np.where(lost, np.copysign(np.float16(SMALLEST_HALF), half), half).astype(np.float16)[()]


def _halved(value: Any) -> Any:
    """Returns a float32 argument (a number or a value) in float16; None for an argument of another type."""
    if isinstance(value, Var):
        if value.dtype != types.fp32:
            return None
        return Builder.cast(x=value, dtype="fp16") if value.val is None else as_half(value.val)
    is_number = isinstance(value, (float, np.floating)) or (isinstance(value, np.ndarray) and value.dtype.kind == "f")
    return as_half(value) if is_number else None


def _is_half(value: Any) -> bool:
    return isinstance(value, Var) and value.dtype == types.fp16


def _beside_half(operation: Any, arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the float32 arguments that must match a float16 argument: the name, and the argument in float16."""
    domains = {
        name: kind.type_domain_id
        for name, kind in operation.input_spec.input_types.items()
        if name in arguments and isinstance(kind, TensorInputType) and kind.type_domain_id is not None
    }
    half = {domain for name, domain in domains.items() if _is_half(arguments[name])}
    for name, domain in domains.items():
        halved = _halved(arguments[name]) if domain in half else None
        if halved is not None:
            yield name, halved


def matching_types(add: Callable[..., Any]) -> Any:
    """Wraps `Builder._add_op`, which adds every operation, so that types of arguments match."""

    def added(_builder: Any, operation: Any, /, **arguments: Any) -> Any:
        return add(operation, **{**arguments, **dict(_beside_half(operation, arguments))})

    return classmethod(added)


def replacements() -> tuple[tuple[Any, str, Any], ...]:
    """Returns what is replaced while a conversion runs: owner, name and replacement."""
    return ((Builder, "_add_op", matching_types(Builder._add_op)),)
