"""Registration of operations that users define."""

from collections.abc import Callable
from functools import cache
from importlib import import_module

from partitioner.host.mil.model import Opset
from partitioner.host.registry import OPS, Function
from partitioner.host.registry import register_op as define


@cache
def _built_in() -> frozenset[str]:
    """Returns the types of the operations that come with the host."""
    import_module("partitioner.host.ops")
    return OPS.types()


def register_op(
    *op_types: str, since: Opset = Opset.IOS15, exact: bool = False, pure: bool = True
) -> Callable[[Function], Function]:
    """Defines MIL operations by a torch function; `partitioner.host.registry` says how parameters arrive.

    Args:
        op_types: Operation types that the function computes.
        since: Earliest opset in which the definition holds; an older program uses an older definition.
        exact: Results need no rounding, for example because the operation only moves elements.
        pure: The result depends on the inputs alone. False: it is never computed ahead of a run.

    Returns:
        A decorator that returns the function unchanged. When it raises, nothing is defined.

    Raises:
        ValueError: No operation is named, or one of them comes with the host or is already defined for that opset.
        TypeError: A parameter's annotation is none of those in `partitioner.host.registry`.
    """
    if not op_types or not all(isinstance(op_type, str) for op_type in op_types):
        raise ValueError('name the operations: @host.register_op("my_operation")')
    known = _built_in()

    def decorate(function: Function) -> Function:
        problems = [_problem(op_type, since, known) for op_type in op_types]
        if any(problems):
            raise ValueError("; ".join(filter(None, problems)) + ". Use another name")
        return define(*op_types, since=since, exact=exact, pure=pure)(function)

    return decorate


def _problem(op_type: str, since: Opset, known: frozenset[str]) -> str | None:
    if op_type in known:
        return f"operation {op_type!r} comes with the host, for every opset that has it"
    if any(found.type == op_type and found.since == since for found in OPS):
        return f"operation {op_type!r} is already defined for {since.name}"
    return None
