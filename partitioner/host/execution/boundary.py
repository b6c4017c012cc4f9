"""Inputs and outputs of a program: checks, and conversions of their types."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from partitioner.host.errors import InputError
from partitioner.host.execution.images import to_image
from partitioner.host.execution.policy import Policy
from partitioner.host.mil.dtypes import DType
from partitioner.host.mil.model import Feature, Function
from partitioner.host.registry import State

# What a declared type accepts. An integer type accepts wider integers when the values fit.
_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_data(features: Sequence[Feature], given: object) -> None:
    """Checks that named inputs are a dictionary, or a list of dictionaries.

    Raises:
        InputError: They are something else.
    """
    entries = given if isinstance(given, (list, tuple)) else [given]
    wrong = sorted({type(entry).__name__ for entry in entries if not isinstance(entry, Mapping)})
    if wrong:
        example = ", ".join(f"{feature.name!r}: ..." for feature in features)
        place = "a list with" if isinstance(given, (list, tuple)) else "a"
        raise InputError(
            f"predict got {place} {', '.join(wrong)}; give a dictionary {{{example}}}, or a list of such dictionaries "
            "(tensors by position go to run)"
        )


def check_names(features: Sequence[Feature], given: Mapping[str, Any]) -> None:
    """Checks that every required input is given and none is unknown.

    Raises:
        InputError: Names are missing or unknown; all of them are listed.
    """
    known = {feature.name for feature in features}
    missing = sorted(feature.name for feature in features if not feature.optional and feature.name not in given)
    unknown = sorted(given.keys() - known, key=str)
    problems = [f"missing {missing}"] * bool(missing) + [f"unknown {unknown}"] * bool(unknown)
    if problems:
        raise InputError(f"inputs {' and '.join(problems)}; the program takes {sorted(known)}")


def check_count(features: Sequence[Feature], given: Sequence[Any]) -> None:
    """Checks the number of positional inputs.

    Raises:
        InputError: They are no sequence, or there are too few or too many.
    """
    if not isinstance(given, (list, tuple)):
        raise InputError(f"run got a {type(given).__name__}; give a list of tensors, one for each input")
    if len(given) != len(features):
        names = [feature.name for feature in features]
        raise InputError(f"got {len(given)} inputs, expected {len(features)} in the order {names}")


def to_program(feature: Feature, given: Any, policy: Policy) -> torch.Tensor:
    """Checks an input and converts it to the type in which programs compute.

    Args:
        feature: The input's declaration.
        given: A torch tensor, numpy array or scalar.
        policy: Precision policy.

    Raises:
        InputError: The shape or data type is not the declared one.
    """
    tensor = _as_tensor(feature, given)
    tensor = _checked_shape(feature, tensor)
    if feature.dtype is None:
        return tensor
    tensor = _checked_dtype(feature, tensor, feature.dtype)
    rounding = policy.rounding(feature.dtype)
    if rounding is None or tensor.dtype == feature.dtype.storage:
        return tensor.to(feature.dtype.compute)
    return rounding(tensor.to(feature.dtype.compute))


def default_input(feature: Feature) -> torch.Tensor:
    """Returns the value of an optional input that was left out, in its default shape."""
    if feature.dtype is None or feature.default_shape is None:
        raise InputError(f"input {feature.name!r} was left out and has no default: its shape is flexible")
    return torch.full(feature.default_shape, feature.default, dtype=feature.dtype.compute)


def to_caller(feature: Feature, value: Any, owned: frozenset[int]) -> Any:
    """Converts an output to its declared type.

    Args:
        feature: The output's declaration.
        value: The value that the program produced.
        owned: Storage addresses that callers must not get hold of; an output that shares one is copied.
    """
    if not isinstance(value, torch.Tensor):
        return value
    if feature.dtype is not None:
        value = value.to(feature.dtype.storage)
    if value.numel() and value.untyped_storage().data_ptr() in owned:
        return value.clone()
    return value.contiguous()


def to_numpy(feature: Feature, value: Any) -> Any:
    """Returns an output as ``predict`` gives it: an array, an image, a string or a dictionary."""
    if not isinstance(value, torch.Tensor):
        return value
    if feature.kind == "image":
        return to_image(feature, value)
    # Core ML has no rank-0 arrays: a scalar is an array of one element.
    return np.asarray(value.numpy()).reshape(value.shape or (1,))


def checked_states(function: Function, states: dict[str, State] | None) -> dict[str, State]:
    """Returns the states of a function.

    Raises:
        InputError: They are missing, or those of another function.
    """
    names = [feature.name for feature in function.states]
    if not names:
        return {}
    if states is None or set(states) != set(names):
        given = "none" if states is None else sorted(states)
        raise InputError(f"function {function.name!r} needs the states {names}, got {given}; pass make_state()")
    return states


def storage_addresses(values: Sequence[Any]) -> frozenset[int]:
    """Returns the addresses of the storages behind the tensors among ``values``."""
    return frozenset(value.untyped_storage().data_ptr() for value in values if isinstance(value, torch.Tensor))


def _as_tensor(feature: Feature, given: Any) -> torch.Tensor:
    if isinstance(given, torch.Tensor):
        return given.detach()
    try:
        array = np.ascontiguousarray(given) if np.ndim(given) else np.asarray(given)
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError) as error:
        raise InputError(f"input {feature.name!r}: cannot read a {type(given).__name__} as a tensor: {error}") from None


def _checked_shape(feature: Feature, tensor: torch.Tensor) -> torch.Tensor:
    shape = tuple(tensor.shape)
    expected = feature.shape
    if feature.shapes and shape not in feature.shapes:
        raise InputError(
            f"input {feature.name!r}: MultiArray Shape ({' x '.join(map(str, shape))}) was not in enumerated set of "
            f"allowed shapes {list(feature.shapes)}"
        )
    if expected is None:
        return tensor
    # Core ML has no rank-0 arrays: a scalar travels as one element.
    if len(expected) <= 1 and len(shape) <= 1 and math.prod(shape) == 1 and expected in ((), (1,)):
        return tensor.reshape(expected)
    limits = _limits(feature, expected)
    problems = [
        f"Size ({got}) of dimension ({axis}) is not in allowed range ({_bounds(low, high)})"
        for axis, (got, (low, high)) in enumerate(zip(shape, limits, strict=False))
        if got < low or (high is not None and got > high)
    ]
    if len(shape) != len(expected) or problems:
        allowed = ", ".join(_bounds(low, high) for low, high in limits)
        details = f": {'; '.join(problems)}" if problems and len(shape) == len(expected) else ""
        raise InputError(f"input {feature.name!r}: got shape {shape}, expected ({allowed}){details}")
    return tensor


def _limits(feature: Feature, expected: tuple[int | None, ...]) -> list[tuple[int, int | None]]:
    """Returns the smallest and the largest size of each dimension."""
    ranges = feature.ranges if len(feature.ranges) == len(expected) else ((0, None),) * len(expected)
    return [bounds if size is None else (size, size) for size, bounds in zip(expected, ranges, strict=True)]


def _bounds(low: int, high: int | None) -> str:
    return str(low) if low == high else f"{low}..{'' if high is None else high}"


def _checked_dtype(feature: Feature, tensor: torch.Tensor, dtype: DType) -> torch.Tensor:
    if dtype.is_float:
        accepted: tuple[torch.dtype, ...] = (*_FLOATS, *_INTEGERS, torch.bool)
    else:
        accepted = (*_INTEGERS, torch.bool)
    if tensor.dtype not in accepted:
        raise InputError(f"input {feature.name!r}: got {tensor.dtype}, expected {dtype.name} or what converts to it")
    if dtype.is_float or tensor.dtype in (dtype.compute, torch.bool) or not tensor.numel():
        return tensor
    low, high = int(tensor.min()), int(tensor.max())
    limits = torch.iinfo(dtype.compute)
    if low < limits.min or high > limits.max:
        raise InputError(f"input {feature.name!r}: values {low}..{high} do not fit the declared type {dtype.name}")
    return tensor
