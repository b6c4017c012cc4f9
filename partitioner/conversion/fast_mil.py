"""Faster replacements for Core ML Tools' own bookkeeping while a conversion runs, with the same results.

For each block that a pass enters, Core ML Tools walks over the whole program to find out which values depend on
compressed weights. It describes a type again each time it needs the description, and measures every weight in temporary
copies. Together this takes half of the time of a conversion. A test checks that the resulting models are equal byte for
byte.
"""

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.block import Block
from coremltools.converters.mil.mil.operation import Operation
from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision
from coremltools.converters.mil.mil.program import Program
from coremltools.converters.mil.mil.types import type_mapping
from coremltools.converters.mil.mil.var import InternalVar, Var

from partitioner.limits import LARGEST_HALF

_INFINITE = 1e38
"""Core ML Tools treats a number of this size or above as an infinity, which float16 has."""

_LARGEST_CHECKED = 400
"""Core ML Tools looks for numbers that underflow only in constants with fewer elements than this."""

_COMPRESSED = "constexpr_"


def _upstream(operation: Any) -> set[Any] | None:
    """Returns the compressed values that an operation's inputs are computed from, or None when there are none."""
    found: set[Any] | None = None
    for value in operation._input_vars.values():
        if value is None or isinstance(value, InternalVar):
            continue
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if item._nonreplaceable_vars_upstream:
                found = (found or set()) | item._nonreplaceable_vars_upstream
    return found


def _note_upstream(value: Any) -> None:
    """Notes the compressed values that a value is computed from; replaces `Var._set_nonreplaceable_vars_upstream`."""
    operation = value._op
    if operation is None:
        return
    kind = type(operation).__name__
    if kind == "shape":
        value._nonreplaceable_vars_upstream = set()
    elif kind.startswith(_COMPRESSED):
        value._nonreplaceable_vars_upstream = {value}
    elif any(item is not None for item in operation._input_vars.values()):
        value._nonreplaceable_vars_upstream = _upstream(operation) or set()


def _note_all_upstream(block: Any) -> None:
    """Notes these compressed values for all values of a block; replaces `Block._propagate_nonreplaceable_vars`."""
    for operation in block.operations:
        for inner in operation.blocks:
            _note_all_upstream(inner)
        kind = type(operation).__name__
        outputs = operation._output_vars
        if outputs is None:
            continue
        if kind.startswith(_COMPRESSED):
            for value in outputs:
                value._nonreplaceable_vars_upstream = {value}
            continue
        found = None if kind in ("const", "shape") else _upstream(operation)
        for value in outputs:
            if found or value._nonreplaceable_vars_upstream:
                value._nonreplaceable_vars_upstream = set(found or ())


def _described_once(describe: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wraps `get_type_info` and keeps its results, which depend only on the type."""
    known: dict[Any, Any] = {}

    def described(kind: Any) -> Any:
        if not isinstance(kind, type):
            return describe(kind)
        if kind not in known:
            known[kind] = describe(kind)
        return known[kind]

    return described


def _beyond_half(value: Any) -> bool:
    array = np.asarray(value)
    if array.size == 0:
        return False
    # Comparisons with NaN are false, so that a NaN leads to the slow way as well.
    if array.max() <= LARGEST_HALF and array.min() >= -LARGEST_HALF:
        return False
    sizes = np.abs(array)
    return bool(np.max(sizes[sizes < _INFINITE], initial=0.0) > LARGEST_HALF)


def _overflows(operation: Any) -> bool:
    """Returns whether a constant input of an operation is too large for float16.

    Replaces `FP16ComputePrecision.fp16_overflow`, and does not copy weights that fit.
    """
    return any(
        _beyond_half(value.op.val.val)
        for inputs in operation.inputs.values()
        for value in (inputs if isinstance(inputs, (list, tuple)) else (inputs,))
        if value.op is not None and value.op.op_type == "const" and value.is_tensor_or_scalar_of(dtype="fp32")
    )


def _checked_if_small(check: Callable[..., None]) -> Callable[..., None]:
    """Wraps `FP16ComputePrecision._check_underflow_to_zero`, and skips constants that are too large for the check.

    The method itself copies a weight before it finds out that the weight is too large.
    """

    def checked(transform: Any, half: Any, single: Any) -> None:
        if np.size(single.val) < _LARGEST_CHECKED:
            check(transform, half, single)

    return checked


def _flattened(operation: Any) -> list[Any]:
    """Returns all inputs of an operation in one list; replaces `Operation.get_flattened_inputs`."""
    found: list[Any] = []
    for value in operation._input_vars.values():
        if value is None or isinstance(value, InternalVar):
            continue
        if isinstance(value, (list, tuple)):
            found.extend(value)
        else:
            found.append(value)
    return found


def replacements() -> Iterable[tuple[Any, str, Any]]:
    """Returns what is replaced while a conversion runs: owner, name and replacement."""
    return (
        (Var, "_set_nonreplaceable_vars_upstream", _note_upstream),
        (Block, "_propagate_nonreplaceable_vars", _note_all_upstream),
        (Operation, "get_flattened_inputs", _flattened),
        (FP16ComputePrecision, "fp16_overflow", staticmethod(_overflows)),
        (
            FP16ComputePrecision,
            "_check_underflow_to_zero",
            _checked_if_small(FP16ComputePrecision._check_underflow_to_zero),
        ),
        # Passes are logged with the whole program, as text that nobody reads.
        (Program, "__str__", object.__repr__),
        (type_mapping, "get_type_info", _described_once(types.get_type_info)),
    )


@contextmanager
def without_old_garbage() -> Iterator[None]:
    """Hides all existing objects from the garbage collector while the context is open.

    Otherwise each collection would visit the objects of the whole process.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
