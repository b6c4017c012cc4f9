"""The fixed sizes of a dynamic input: a `.pte` declares upper bounds only, the Core ML program in it says more."""

from dataclasses import replace

from partitioner.host.errors import ProgramFormatError
from partitioner.host.mil.model import Feature
from partitioner.host.pte.reader import COREML_BACKEND, Method
from partitioner.host.reading.open import open_program


def with_fixed_sizes(method: Method) -> Method:
    """Returns `method` with the fixed sizes of its inputs, which are known when all of it is one delegate."""
    wiring = method.wiring
    if wiring is None or method.delegates[0].backend != COREML_BACKEND:
        return method
    try:
        program = open_program(bytes(method.delegates[0].data))
    except ProgramFormatError:
        # A reference to named data, or a damaged program, which running it reports.
        return method
    features = program.functions[program.default_function].inputs
    by_value = dict(zip(wiring.arguments, features, strict=False))
    inputs = tuple(
        replace(spec, fixed=_fixed(by_value[value])) if spec.dynamic and value in by_value else spec
        for spec, value in zip(method.inputs, wiring.inputs, strict=True)
    )
    return replace(method, inputs=inputs)


def _fixed(feature: Feature) -> frozenset[int]:
    return frozenset(axis for axis, (low, high) in enumerate(feature.ranges) if low == high)
