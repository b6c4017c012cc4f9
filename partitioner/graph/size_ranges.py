"""Ranges of dynamic sizes, as the program was exported with them.

`torch.export` traces a size as at least two. It stores separately that ``Dim(min=1)`` allows one, too. ExecuTorch's
passes build a new edge program from the trace, and that lower bound is lost.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

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
    """Returns the program with the lower bounds of its sizes from the export, and with ranges of computed sizes.

    A partition may begin with a tensor whose size is an expression of the program's sizes (``s - 2``). Core ML has a
    range for each dimension, and no expressions.
    """
    known = {**program.range_constraints, **_widened(program, ranges)}
    known.update(_computed(program, known))
    if known == program.range_constraints:
        return program
    program = copy.copy(program)
    program._range_constraints = known
    return program


def _widened(program: ExportedProgram, ranges: Sequence[SizeRange]) -> dict[Any, ValueRanges[Any]]:
    lower_bounds = {(symbol, upper): lower for symbol, lower, upper in ranges}
    return {
        symbol: ValueRanges(lower_bounds[str(symbol), int(bounds.upper)], bounds.upper)
        for symbol, bounds in program.range_constraints.items()
        if bounds.is_int
        and bounds.upper.is_Integer  # torch's infinity of integers calls itself finite
        and lower_bounds.get((str(symbol), int(bounds.upper)), bounds.lower) < bounds.lower
    }


def _computed(program: ExportedProgram, known: Mapping[Any, ValueRanges[Any]]) -> dict[Any, ValueRanges[Any]]:
    """Returns the ranges of the sizes of inputs that are expressions, by expression."""
    inputs = set(program.graph_signature.user_inputs)
    values = [tensor_of(node) for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    sizes: list[Any] = [size for value in values if value is not None for size in value.shape]
    expressions = {size.node.expr for size in sizes if isinstance(size, torch.SymInt)} - set(known)
    return {expression: _at_least_one(bound_sympy(expression, dict(known))) for expression in expressions}


def _at_least_one(bounds: ValueRanges[Any]) -> ValueRanges[Any]:
    """Returns a range without zero: Core ML has no empty tensors."""
    return ValueRanges(max(bounds.lower, 1), max(bounds.upper, 1))
