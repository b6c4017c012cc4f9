"""Ranges of dynamic sizes, as the program was exported with them.

`torch.export` traces a size as at least two. It stores separately that ``Dim(min=1)`` allows one, too. ExecuTorch's
passes build a new edge program from the trace, and that lower bound is lost.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from torch.export import ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from partitioner.graph.nodes import tensor_of

SizeRange = tuple[str, int, int]
"""The symbol of a size, its lower and its upper bound."""


def size_ranges(program: ExportedProgram) -> tuple[SizeRange, ...]:
    """Returns the ranges of the bounded sizes of a program."""
    return tuple(
        (str(symbol), int(bounds.lower), int(bounds.upper))
        for symbol, bounds in program.range_constraints.items()
        if bounds.is_int and bounds.lower.is_Integer and bounds.upper.is_Integer
    )


def merged(ranges: Iterable[SizeRange]) -> tuple[SizeRange, ...]:
    """Returns one range for each pair of a symbol and an upper bound.

    Several methods may have the same symbol with the same upper bound. The largest lower bound is then right for all.
    """
    lowest: dict[tuple[str, int], int] = {}
    for symbol, lower, upper in ranges:
        lowest[symbol, upper] = max(lower, lowest.get((symbol, upper), lower))
    return tuple((symbol, lower, upper) for (symbol, upper), lower in sorted(lowest.items()))


def unbounded_sizes(program: ExportedProgram) -> list[str]:
    """Returns lines for the report: the sizes of inputs that have no upper bound.

    ExecuTorch plans memory for the example's size in their case.
    """
    found = []
    inputs = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        value = tensor_of(node)
        if node.op != "placeholder" or node.name not in inputs or value is None:
            continue
        sizes: list[Any] = list(value.shape)
        for axis, size in enumerate(sizes):
            if not isinstance(size, int) and _is_unbounded(program, size):
                found.append(
                    f"dimension {axis} of input {node.name!r} has no upper bound, so that no size beyond the example's "
                    "will run; export with dynamic_shapes of torch.export.Dim('name', max=...)"
                )
    return found


def _is_unbounded(program: ExportedProgram, size: Any) -> bool:
    ranges = (program.range_constraints.get(symbol) for symbol in size.node.expr.free_symbols)
    return any(bounds is not None and not bounds.upper.is_Integer for bounds in ranges)


def with_size_ranges(program: ExportedProgram, ranges: Sequence[SizeRange]) -> ExportedProgram:
    """Returns the program with the lower bounds of its sizes from the export."""
    lower_bounds = {(symbol, upper): lower for symbol, lower, upper in ranges}
    widened = {
        symbol: ValueRanges(lower_bounds[str(symbol), int(bounds.upper)], bounds.upper)
        for symbol, bounds in program.range_constraints.items()
        if bounds.is_int
        and bounds.upper.is_Integer  # torch's infinity of integers calls itself finite
        and lower_bounds.get((str(symbol), int(bounds.upper)), bounds.lower) < bounds.lower
    }
    if not widened:
        return program
    program = copy.copy(program)
    program._range_constraints = {**program.range_constraints, **widened}
    return program
