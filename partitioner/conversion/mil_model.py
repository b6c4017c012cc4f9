"""The conversion of an exported program to a Core ML model in memory, with only the needed parts of Core ML Tools.

`coremltools.convert` also writes the model as a package, reads the package back and collects garbage. This takes a
fifth of its time.
"""

from pathlib import Path
from typing import Any

import coremltools as ct
from coremltools.converters.mil._deployment_compatibility import check_deployment_compatibility
from coremltools.converters.mil.converter import (
    ConverterRegistry,
    _reset_conversion_state,
    mil_convert_to_proto,
)
from torch.export import ExportedProgram

from partitioner.conversion.debug_handles import HandleMap, debug_handles

_FIRST_WITH_HALF_ENDS = ct.target.iOS16
_CASTS = {"common::add_fp16_cast", "common::add_int16_cast"}
_UNBOUNDED = -1


def convert_to_spec(
    program: ExportedProgram,
    inputs: list[Any] | None,
    pipeline: ct.PassPipeline,
    precision: ct.precision,
    target: ct.target | None,
    weights: Path,
) -> tuple[Any, HandleMap]:
    """Converts a program to a Core ML model in memory and a weight file.

    Args:
        program: An ATen or edge program.
        inputs: The model's inputs when they differ from the program's inputs, otherwise None.
        pipeline: The MIL passes; changed in place.
        precision: The compute precision; float16 adds casts to the program.
        target: The deployment target; None stands for the oldest one that has ML programs.
        weights: The folder into which the weight file is written.

    Returns:
        The ``Model`` protobuf, and the debug handles of its operations.

    Raises:
        Exception: Any error that Core ML Tools raises.
        ValueError: The size of an input has no upper bound, or the model needs a newer deployment target.
    """
    half = precision == ct.precision.FLOAT16
    if not half:
        pipeline.remove_passes(_CASTS)
    try:
        spec, mil_program = mil_convert_to_proto(
            program,
            "pytorch",
            "mlprogram",
            ConverterRegistry,
            main_pipeline=pipeline,
            inputs=inputs,
            outputs=None,
            classifier_config=None,
            states=[],
            specification_version=(ct.target.iOS15 if target is None else target).value,
            use_default_fp16_io=half and target is not None and target >= _FIRST_WITH_HALF_ENDS,
            weights_dir=str(weights),
        )
    finally:
        _reset_conversion_state()
    _check_bounds(spec)
    if target is not None:
        check_deployment_compatibility(spec=spec, representation="mlprogram", deployment_target=target)
    return spec, debug_handles(mil_program)


def _check_bounds(spec: Any) -> None:
    unbounded = [
        feature.name
        for feature in spec.description.input
        if any(size.upperBound == _UNBOUNDED for size in feature.type.multiArrayType.shapeRange.sizeRanges)
    ]
    if unbounded:
        raise ValueError(
            f"the size of {', '.join(map(repr, unbounded))} has no upper bound, and Core ML needs one: give it in "
            'torch.export.Dim("name", max=...)'
        )
