"""A MIL pass before the cast to float16, which clamps masks and selects the operations that stay in float32."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil.input_types import TensorType
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
from coremltools.converters.mil.mil.scope import ScopeSource

from partitioner.graph.nodes import source_line
from partitioner.half_precision.magnitudes import Magnitudes, calibrated, magnitudes
from partitioner.half_precision.masks import CLAMPED, clamp, masking_constants
from partitioner.half_precision.squares import root_first
from partitioner.limits import LARGEST_HALF, SMALLEST_HALF
from partitioner.no_origin import NO_ORIGIN

HALF_SAFETY = "partitioner::HalfSafety"
_CAST = "common::add_fp16_cast"


@dataclass
class Findings:
    """Values that float16 cannot hold, as found in a conversion.

    Attributes:
        places: What was done -> the operations that it was done for, each with its line in the model.
        wide: Names of the MIL operations that stay in float32.
    """

    places: dict[str, list[str]] = field(default_factory=dict)
    wide: set[str] = field(default_factory=set)

    def add(self, done: str, operations: Iterable[Any]) -> None:
        """Notes what was done for some operations, and names the first of them."""
        self.places.setdefault(done, []).append(_place(operations))

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for each kind of measure that was taken."""
        return tuple(
            f"{done}: {places[0]}" + (f" and {len(places) - 1} more" if len(places) > 1 else "")
            for done, places in self.places.items()
        )

    def to_half(self, operation: Any) -> bool:
        """Returns whether an operation may be cast to float16."""
        return operation.name not in self.wide


def watch(pipeline: ct.PassPipeline) -> Findings:
    """Inserts the pass before the cast to float16, if a pipeline has this cast.

    Args:
        pipeline: The MIL passes, changed in place.

    Returns:
        The findings of the pass, filled when the pipeline runs.
    """
    findings = Findings()
    if _CAST in pipeline.passes:
        if HALF_SAFETY not in pipeline.passes:
            pipeline.insert_pass(pipeline.passes.index(_CAST), HALF_SAFETY)
        pipeline._pass_options.pop(HALF_SAFETY, None)
        pipeline._pass_options.pop(_CAST, None)
        pipeline.set_options(HALF_SAFETY, {"findings": findings})
        pipeline.set_options(_CAST, {"op_selector": findings.to_half})
    return findings


class HalfSafety(AbstractGraphPass):
    """A MIL pass that clamps masking constants and lists the operations that must not be cast to float16."""

    findings: Findings = Findings()

    def apply(self, prog: Any) -> None:
        """Checks a program and changes it in place."""
        for function in prog.functions.values():
            with function, mb.scope(*NO_ORIGIN):
                root_first(function)
                _clamp_masks(function, self.findings)
            _note_tiny(function, self.findings)
            _keep_wide(function, self.findings)


def _clamp_masks(block: Any, findings: Findings) -> None:
    for operation in list(masking_constants(block)):
        value = operation.outputs[0].val
        extreme = float(np.asarray(value).flat[np.argmax(np.abs(value))])
        findings.add(f"mask {extreme:.4g} clamped to {np.sign(extreme) * CLAMPED:.0f}", operation.outputs[0].child_ops)
        clamp(operation, block, mb)


def _note_tiny(block: Any, findings: Findings) -> None:
    """Notes the constants that would round to zero in float16.

    Core ML Tools stores them as the smallest number of float16. In the argument of a logarithm, this difference would
    change the result: there the number stays in float32.
    """
    for operation in block.operations:
        value = operation.outputs[0].val if operation.op_type == "const" else None
        if not isinstance(value, (np.floating, np.ndarray)) or value.dtype != np.float32 or value.size != 1:
            continue
        number = value.item()
        if not 0 < abs(number) < SMALLEST_HALF / 2:
            continue
        for reader in operation.outputs[0].child_ops:
            logarithms = _logarithms(reader)
            if logarithms:
                findings.wide |= {reader.name, *(found.name for found in logarithms)}
                findings.add(f"kept in float32 with its logarithm, for {number:.4g}", [reader])
            else:
                raised = np.sign(number) * SMALLEST_HALF
                findings.add(f"{number:.4g} raised to {raised:.4g}, the smallest of float16", [reader])


def _logarithms(operation: Any) -> list[Any]:
    return [reader for value in operation.outputs for reader in value.child_ops if reader.op_type == "log"]


def _keep_wide(block: Any, findings: Findings) -> None:
    sizes = magnitudes(block)
    for operation in block.operations:
        if operation.op_type == "quantize":
            _widen_backwards(operation.input, calibrated(operation, operation.outputs[0]), sizes)
    begun = []
    for operation in block.operations:
        if operation.op_type == "const":
            continue
        read = [value for value in _values(operation) if _exceeds(value, sizes)]
        made = [value for value in operation.outputs if _exceeds(value, sizes)]
        if not read and not made:
            continue
        findings.wide.add(operation.name)
        if made and not any(value.op is not None and value.op.name in findings.wide for value in read):
            begun.append((operation, max(sizes[value] for value in made)))
    for operation, size in begun:
        findings.add(f"kept in float32 with what reads it, for values up to {size:.4g}", [operation])
    _return_wide(block, sizes)


def _return_wide(function: Any, sizes: Magnitudes) -> None:
    """Removes the cast of large results to float16. Results get this cast from iOS16 on."""
    wide = [_exceeds(value, sizes) for value in function.outputs]
    if not any(wide):
        return
    casts = [value.op is not None and value.op.op_type == "cast" for value in function.outputs]
    outputs = [
        value.op.x if large and cast else value
        for value, large, cast in zip(function.outputs, wide, casts, strict=True)
    ]
    function.set_outputs(outputs)
    if function.output_types is not None:
        function.output_types = [
            TensorType(dtype=types.fp32) if large else given
            for given, large in zip(function.output_types, wide, strict=True)
        ]


_PASSING = frozenset({"relu", "reshape", "transpose", "expand_dims", "squeeze", "identity", "slice_by_index", "pad"})


def _widen_backwards(value: Any, size: float, sizes: Magnitudes) -> None:
    """Applies a large calibrated magnitude to a value, and to the values before it that only pass through."""
    while size > LARGEST_HALF and value is not None:
        sizes[value] = max(sizes.get(value, 1.0), size)
        made_by = value.op
        value = made_by.x if made_by is not None and made_by.op_type in _PASSING else None


def _exceeds(value: Any, sizes: Magnitudes) -> bool:
    return sizes.get(value, 1.0) > LARGEST_HALF


def _values(operation: Any) -> Iterable[Any]:
    for given in operation.inputs.values():
        yield from given if isinstance(given, (list, tuple)) else [given]


def _place(operations: Iterable[Any]) -> str:
    """Returns a text that names the first of some operations and its line in the model."""
    for operation in operations:
        traces = operation.scopes.get(ScopeSource.EXIR_STACK_TRACE) or [None]
        line = source_line(traces[0])
        return f"{operation.op_type} {operation.name!r}{f' ({line})' if line else ''}"
    return "unused"


PASS_REGISTRY.add("partitioner", HalfSafety, override=True, name=None)
