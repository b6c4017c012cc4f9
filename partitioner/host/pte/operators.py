"""Checks that the arguments of a kernel call have the kinds that the operator's schema asks for.

ExecuTorch's kernels read their arguments with asserting accessors: an integer where a tensor belongs ends the process.
The schemas are PyTorch's; an operator that PyTorch does not know here is left to the runtime.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch

from partitioner.host.pte.flatbuffer import Table

_ABSENT = frozenset({None, "Null"})
_KINDS: dict[str, frozenset[str | None]] = {
    "TensorType": frozenset({"Tensor"}),
    "IntType": frozenset({"Int"}),
    "SymIntType": frozenset({"Int"}),
    "BoolType": frozenset({"Bool"}),
    "FloatType": frozenset({"Double"}),
    "NumberType": frozenset({"Int", "Double", "Bool"}),
    "StringType": frozenset({"String"}),
}
_LIST_KINDS: dict[str, frozenset[str | None]] = {
    "TensorType": frozenset({"TensorList"}),
    "OptionalType": frozenset({"TensorList", "OptionalTensorList"}),
    "IntType": frozenset({"IntList"}),
    "SymIntType": frozenset({"IntList"}),
    "BoolType": frozenset({"BoolList"}),
    "FloatType": frozenset({"DoubleList"}),
}


def argument_problems(operator: Table, arguments: list[Table | None]) -> Iterator[str]:
    """Yields what is wrong with the arguments of one kernel call.

    Args:
        operator: Name and overload of the operator.
        arguments: The values given: the schema's arguments in order, then the returned values once more.
    """
    name = f"{operator['name']}.{operator['overload'] or 'default'}"
    expected = _expected_kinds(operator["name"] or "", operator["overload"] or "default")
    if expected is None:
        return
    if len(arguments) < len(expected):
        yield f"{name} has {len(arguments)} arguments and takes at least {len(expected)}"
        return
    for index, (allowed, value) in enumerate(zip(expected, arguments, strict=False)):
        kind = None if value is None else value.kind
        if allowed is not None and kind not in allowed:
            yield f"argument {index} of {name} is {kind} and may be {sorted(map(str, allowed))}"


@lru_cache(maxsize=1024)
def _expected_kinds(name: str, overload: str) -> tuple[frozenset[str | None] | None, ...] | None:
    namespace, _, operator = name.partition("::")
    try:
        schema = getattr(getattr(getattr(torch.ops, namespace), operator), overload)._schema
    except (AttributeError, RuntimeError):
        return None
    return tuple(_allowed(argument.type) for argument in schema.arguments)


def _allowed(type_: Any) -> frozenset[str | None] | None:
    """Returns the kinds an argument of a JIT type may have; None where nothing is known."""
    kind = type_.kind()
    if kind == "OptionalType":
        inner = _allowed(type_.getElementType())
        return None if inner is None else inner | _ABSENT
    if kind == "ListType":
        return _LIST_KINDS.get(type_.getElementType().kind())
    return _KINDS.get(kind)
