"""Checks of the arguments of `lower`: where those belong that it does not take, and what contradicts each other."""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch.export import ExportedProgram

from partitioner.backend import CoreMLBackend
from partitioner.errors import ArgumentError
from partitioner.partitioner import CoreMLPartitioner

_PARTITIONER = tuple(inspect.signature(CoreMLPartitioner).parameters)
_SPECS = tuple(inspect.signature(CoreMLBackend.generate_compile_specs).parameters)
_EDGE = ("transform_passes", "constant_methods", "compile_config", "generate_etrecord")
_PLACES: tuple[tuple[tuple[str, ...], str], ...] = (
    (_PARTITIONER, "lower(program, partitioner=CoreMLPartitioner({}=...))"),
    (_SPECS, "lower(program, compile_specs=CoreMLBackend.generate_compile_specs({}=...))"),
    (_EDGE, "to_edge_transform_and_lower(program, partitioner=[CoreMLPartitioner()], {}=...).to_executorch()"),
)
"""Arguments of other functions that may be given to `lower` by mistake, with the call that takes them."""


def check_programs(programs: Any) -> None:
    """Refuses what is neither an exported program nor a dict of them.

    Raises:
        ArgumentError: `programs` is something else; the message says what.
    """
    if isinstance(programs, ExportedProgram):
        return
    values = programs.values() if isinstance(programs, Mapping) else [programs]
    wrong = sorted({type(value).__name__ for value in values if not isinstance(value, ExportedProgram)})
    if wrong or not values:
        raise ArgumentError(
            f"lower takes exported programs, not {', '.join(wrong) or 'an empty dict'}: "
            "lower(torch.export.export(model.eval(), inputs)), or a dict of such by method name"
        )


def partitioner_of(partitioner: Any, options: Mapping[str, Any]) -> CoreMLPartitioner:
    """Returns the given partitioner, or one with the options that were given to `lower` itself.

    Args:
        partitioner: The argument of this name.
        options: The options that were given, by name.

    Raises:
        ArgumentError: `partitioner` is no `CoreMLPartitioner`.
        ValueError: Options are given beside a partitioner.
        CompileSpecError: An option has an impossible value, or contradicts another one.
    """
    if partitioner is None:
        return CoreMLPartitioner(**options)
    if not isinstance(partitioner, CoreMLPartitioner):
        raise ArgumentError(
            f"partitioner must be one CoreMLPartitioner, not {type(partitioner).__name__}: "
            "lower(program, partitioner=CoreMLPartitioner(...))"
        )
    if options:
        given = ", ".join(f"{name}=..." for name in options)
        what = "the compile specs" if set(options) == {"compile_specs"} else "all options"
        raise ValueError(f"give {what} to the partitioner: CoreMLPartitioner({given})")
    return partitioner


def refuse_misplaced(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuses arguments that `lower` does not take.

    Args:
        names: The names of these arguments.
        known: The names of the arguments that `lower` takes.

    Raises:
        ArgumentError: There are some; the message says where each belongs.
    """
    problems = [f"lower() takes no argument {name!r}: {_belongs(name, sorted(known))}" for name in names]
    if problems:
        raise ArgumentError("\n".join(problems))


def _belongs(name: str, known: list[str]) -> str:
    for names, call in _PLACES:
        if name in names:
            return f"write {call.format(name)}"
    close = difflib.get_close_matches(name, [*known, *_PARTITIONER, *_SPECS, *_EDGE], n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}it takes {', '.join(known)}; everything else is an option of CoreMLPartitioner"
