"""Ranges of dynamic sizes as the program was exported with them.

`torch.export` traces a size as at least two and notes apart that ``Dim(min=1)`` allows one, too. ExecuTorch's passes
make the edge program anew from the trace, which loses that.
"""

import copy
from collections.abc import Iterable, Sequence

from torch.export import ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

SizeRange = tuple[str, int, int]
"""The symbol of a size, its lower and its upper bound."""


def size_ranges(program: ExportedProgram) -> tuple[SizeRange, ...]:
    """Lists the bounded sizes of a program."""
    return tuple(
        (str(symbol), int(bounds.lower), int(bounds.upper))
        for symbol, bounds in program.range_constraints.items()
        if bounds.is_int and bounds.lower.is_Integer and bounds.upper.is_Integer
    )


def merged(ranges: Iterable[SizeRange]) -> tuple[SizeRange, ...]:
    """Several methods may have one symbol with one upper bound; then the larger lower bound is right for all."""
    lowest: dict[tuple[str, int], int] = {}
    for symbol, lower, upper in ranges:
        lowest[symbol, upper] = max(lower, lowest.get((symbol, upper), lower))
    return tuple((symbol, lower, upper) for (symbol, upper), lower in sorted(lowest.items()))


def with_size_ranges(program: ExportedProgram, ranges: Sequence[SizeRange]) -> ExportedProgram:
    """Returns the program with the lower bounds that it was exported with."""
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
