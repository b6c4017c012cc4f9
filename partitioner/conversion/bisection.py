"""A search for the operation that makes a conversion fail, when the error itself does not name it.

A MIL pass, or the writing of the model, sees the whole program. The search therefore converts only the first operations
of the program. Bisection finds the smallest number of them with which the conversion fails: about ten conversions for a
thousand operations.
"""

from collections.abc import Callable

from torch.export import ExportedProgram
from torch.fx import Node

from partitioner.graph.subprograms import subprogram


def first_failing(program: ExportedProgram, convert: Callable[[ExportedProgram], object]) -> Node | None:
    """Finds the first operation with which a conversion fails.

    Args:
        program: A program whose conversion fails.
        convert: Converts a program, or raises.

    Returns:
        The operation, or None when no part of the program fails.
    """
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    good, bad = 0, len(nodes)
    if not _fails(program, nodes, convert):
        return None
    while bad - good > 1:
        middle = (good + bad) // 2
        if _fails(program, nodes[:middle], convert):
            bad = middle
        else:
            good = middle
    return nodes[bad - 1]


def _fails(program: ExportedProgram, nodes: list[Node], convert: Callable[[ExportedProgram], object]) -> bool:
    part = subprogram(program, nodes)
    if part is None:
        return False
    try:
        convert(part)
    except Exception:  # any failure counts, and Core ML Tools raises every kind  # noqa: BLE001
        return True
    return False
