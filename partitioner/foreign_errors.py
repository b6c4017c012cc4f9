"""The boundary at which errors of PyTorch, ExecuTorch and Core ML Tools become errors of this package."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch.export import ExportedProgram
from torch.fx import Node

from partitioner.errors import LoweringError, PartitionerError
from partitioner.graph.nodes import op_name, place

_OWNERS: Mapping[str, str] = {"torch": "PyTorch", "executorch": "ExecuTorch", "coremltools": "Core ML Tools"}
_NAMES = re.compile(r"[A-Za-z_]\w*(?:(?:\.|::)\w+)*")
_MOST_LINES = 4


@contextmanager
def own_errors(programs: Iterable[ExportedProgram]) -> Iterator[None]:
    """Turns what anything else raises in the context into an error that names the operation and what to do.

    Args:
        programs: The programs that are being lowered.

    Raises:
        LoweringError: Something else than this package raised; that is its cause.
        PartitionerError: This package raised it.
    """
    try:
        yield
    except (PartitionerError, MemoryError):
        raise
    except Exception as error:  # third parties raise every kind
        nodes = [node for program in programs for node in program.graph.nodes if node.op == "call_function"]
        found = _named(str(error), nodes)
        what = "the program" if found is None else place(found)
        failed = LoweringError(f"{_owner(error)} could not lower {what}: {_first_lines(error)}\n{_remedy(found)}")
        failed.node = None if found is None else found.name
        raise failed from error


def _owner(error: BaseException) -> str:
    """Returns who raised an error: the innermost third party in its traceback."""
    trace, owner = error.__traceback__, "Python"
    while trace is not None:
        package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        owner = _OWNERS.get(package, owner)
        trace = trace.tb_next
    return owner


def _first_lines(error: BaseException) -> str:
    lines = [line.rstrip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: " + "\n  ".join(lines[:_MOST_LINES])


def _named(text: str, nodes: Iterable[Node]) -> Node | None:
    """Returns the operation that a message names first, by the name of its node or of its operator."""
    known: dict[str, Node] = {}
    for node in nodes:
        full = op_name(node)
        as_schema, as_edge_node = full.rpartition(".")[0].replace(".", "::"), full.replace(".", "_")
        for name in filter(None, (node.name, full, as_schema, as_edge_node)):
            known.setdefault(name, node)
    return next((known[name] for name in _NAMES.findall(text) if name in known), None)


def _remedy(node: Node | None) -> str:
    operation = "what the message names" if node is None else "the operation"
    return (
        f"Write the model without {operation}; where to_edge_transform_and_lower(program).to_executorch(), without a "
        "partitioner, takes the program, please report this message"
    )
