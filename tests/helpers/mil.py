"""Builds small ML Programs with Core ML Tools and runs them on the host runtime."""

from collections.abc import Callable, Mapping, Sequence

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, types
from numpy.typing import ArrayLike, NDArray

from partitioner import host

TARGETS = {15: ct.target.iOS15, 16: ct.target.iOS16, 17: ct.target.iOS17, 18: ct.target.iOS18}
_TYPES = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32, "bool": types.bool}

Outputs = Mapping[str, NDArray]
Build = Callable[..., object]


def convert(
    build: Build,
    inputs: Mapping[str, NDArray],
    *,
    ios: int = 17,
    half: bool = False,
    states: Mapping[str, tuple[int, ...]] | None = None,
) -> ct.models.MLModel:
    """Converts the values that ``build(**inputs)`` returns, without graph passes that would remove operations.

    Args:
        build: Takes the program's inputs and returns output values, one or a sequence.
        inputs: Arrays whose types and shapes the inputs get.
        ios: Deployment target.
        half: Whether floats are declared fp16 inside the program; its interface keeps its types.
        states: Shapes of fp16 states by name.
    """
    placeholders = {
        name: mb.placeholder(shape=value.shape, dtype=_TYPES[str(value.dtype)]) for name, value in inputs.items()
    }
    for name, shape in (states or {}).items():
        placeholders[name] = mb.state_tensor_placeholder(shape, dtype=types.fp16)
    program = Program()
    with Function(placeholders, opset_version=TARGETS[ios]) as function:
        function.set_outputs(_named(build(**function.inputs)))
        program.add_function("main", function)
    return ct.convert(
        program,
        source="milinternal",
        convert_to="mlprogram",
        minimum_deployment_target=TARGETS[ios],
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline(["common::add_fp16_cast"] if half else []),
        skip_model_load=True,
    )


def run(
    build: Build,
    inputs: Mapping[str, ArrayLike],
    *,
    ios: int = 17,
    half: bool = False,
    policy: str = "float32",
) -> list[NDArray]:
    """Converts and runs; the outputs in order."""
    arrays = {name: np.asarray(value) for name, value in inputs.items()}
    program = host.load(convert(build, arrays, ios=ios, half=half), policy=policy)
    results = program.predict(arrays)
    return [results[feature.name] for feature in program.outputs]


def half_ulps(actual: NDArray, expected: NDArray) -> float:
    """Largest distance from the expected values, in units of the last place of half precision."""
    return _ulps(actual, expected, np.float16)


def single_ulps(actual: NDArray, expected: NDArray) -> float:
    """Largest distance from the expected values, in units of the last place of single precision."""
    return _ulps(actual, expected, np.float32)


def _ulps(actual: NDArray, expected: NDArray, dtype: type) -> float:
    reference = np.asarray(expected, np.float64)
    assert actual.shape == reference.shape, (actual.shape, reference.shape)
    finite = np.isfinite(reference)
    np.testing.assert_array_equal(np.asarray(actual, np.float64)[~finite], reference[~finite])
    distance = np.abs(np.asarray(actual, np.float64)[finite] - reference[finite])
    unit = np.spacing(np.maximum(np.abs(reference[finite]), np.finfo(dtype).tiny).astype(dtype)).astype(np.float64)
    return float((distance / unit).max(initial=0.0))


def _named(results: object) -> list[object]:
    values: Sequence[object] = list(results) if isinstance(results, list | tuple) else [results]
    return list(values)
