"""Checks of the names in `skip_ops_for_coreml_delegation`: their form, and whether such operators exist."""

import difflib
from collections.abc import Iterable
from typing import Any

import executorch.exir.dialects._ops  # registers the operators of edge programs  # noqa: F401
import torch
import torch._higher_order_ops
from torch.fx import Node

from partitioner.graph.nodes import skip_names

_ARGUMENT = "skip_ops_for_coreml_delegation"


def name_problems(names: Any) -> list[str]:
    """Returns the problems of the argument `skip_ops_for_coreml_delegation`.

    Args:
        names: The value that the user gave.

    Returns:
        One sentence for each problem: the value is no list of strings, or no registered operator has a name.
    """
    if names is None:
        return []
    if isinstance(names, str) or not isinstance(names, Iterable):
        return [f"{_ARGUMENT}={names!r} must be a list of operator names, such as ['aten.relu.default']"]
    entries = list(names)
    problems = [
        f"{_ARGUMENT} holds {entry!r}, which is not a string; an operator's name is needed, such as 'aten.relu.default'"
        for entry in entries
        if not isinstance(entry, str)
    ]
    given = [entry for entry in entries if isinstance(entry, str)]
    known = _known_names() if given else frozenset()
    return problems + [_unknown(name, known) for name in given if name.lower() not in known]


def without_effect(names: frozenset[str], nodes: Iterable[Node]) -> list[str]:
    """Returns lines for the report: names that match no operation of a program.

    Args:
        names: The names that the user gave, in lower case.
        nodes: The operations of the program.
    """
    if not names:
        return []
    known = frozenset[str]().union(*map(skip_names, nodes))
    return [f"{_ARGUMENT} names {name!r}, which the program does not have" for name in sorted(names - known)]


def _known_names() -> frozenset[str]:
    """Returns the lower-case names of all registered operators.

    They are read anew on each call, because libraries register their operators when they are imported.
    """
    names = {"getitem", *torch._higher_order_ops.__all__}
    for registered in torch._C._dispatch_get_all_op_names():
        name = registered.replace("::", ".").lower()
        names.add(name if "." in registered else f"{name}.default")
    return frozenset(names)


def _unknown(name: str, known: frozenset[str]) -> str:
    near = difflib.get_close_matches(name.lower(), sorted(known), n=3)
    hint = f"near matches: {', '.join(near)}" if near else "names look like 'aten.relu.default'"
    return f"{_ARGUMENT} names {name!r}, which is no registered operator; {hint}"
