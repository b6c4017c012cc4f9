"""Analysis of a graph's values before anything is quantized: which are constants, and which are written in place."""

import operator
from collections.abc import Callable, Container
from enum import Enum
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16})


def is_float(node: Node) -> bool:
    """Returns whether `node` makes one tensor of a floating-point type that can be quantized."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype in FLOATS


def find_constants(nodes: list[Node], written: set[Node]) -> set[Node]:
    """Returns the nodes that do not depend on the model's inputs: parameters, buffers, factories, and results of these.

    Args:
        nodes: All nodes in topological order.
        written: Nodes whose values are written in place, which are therefore no constants.
    """
    constants: set[Node] = set()
    for node in nodes:
        fixed = node.op == "get_attr" or (node.op == "call_function" and constants.issuperset(node.all_input_nodes))
        if fixed and node not in written:
            constants.add(node)
    return constants


def find_feeding(nodes: list[Node], ends: Container[Node]) -> set[Node]:
    """Returns the nodes whose values are only used by `ends`, directly or through other returned nodes.

    Args:
        nodes: All nodes in topological order.
        ends: Some of these nodes.
    """
    found: set[Node] = set()
    for node in reversed(nodes):
        if node.users and all(user in ends or user in found for user in node.users):
            found.add(node)
    return found


def evaluate(node: Node, graph_module: GraphModule) -> Any:
    """Returns the value of a constant node, which it computes."""
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(graph_module)
    function: Callable[..., Any] = (
        graph_module.get_submodule(str(node.target)) if node.op == "call_module" else node.target  # type: ignore[assignment]
    )
    arguments, keywords = map_arg((node.args, node.kwargs), lambda source: evaluate(source, graph_module))
    with torch.no_grad():
        return function(*arguments, **keywords)


def constant_of(graph_module: GraphModule, argument: object) -> Tensor | None:
    """Returns the detached tensor of a constant argument of a call; None if the argument is not given."""
    return evaluate(argument, graph_module).detach() if isinstance(argument, Node) else None


def find_written_values(nodes: list[Node]) -> set[Node]:
    """Returns the nodes whose values are changed in place later, so that a copy made before would be wrong.

    A quantized value is read through copies. Writing to it in place is then only right if afterwards nothing is read
    but the result of the writing operator. `relu_(conv(x))` is right. `y[:, 0] = 7` is not, because it writes through a
    view of `y`. All views of a value that is written are returned with it. Parameters and buffers that are written are
    always returned.
    """
    writes = {node: target for node in nodes if (target := _aliased(node, _Alias.WRITTEN)) is not None}
    if not writes:
        return set()
    positions = {node: index for index, node in enumerate(nodes)}
    roots: dict[Node, Node] = {}
    families: dict[Node, list[Node]] = {}
    for node in nodes:
        viewed = _aliased(node, _Alias.VIEWED)
        roots[node] = roots[viewed] if viewed is not None else node
        families.setdefault(roots[node], []).append(node)
    found: set[Node] = set()
    for node, target in writes.items():
        family = families[roots[target]]
        later = any(positions[user] > positions[node] for member in family for user in member.users)
        if later or len(family) > 1 or roots[target].op != "call_function":
            found.update(family)
            found.add(node)
    return found


class _Alias(Enum):
    """What a call does with the memory of its first argument, if its result shares that memory."""

    VIEWED = False
    WRITTEN = True


def _aliased(node: Node, alias: _Alias) -> Node | None:
    """Returns the first argument of `node` if, as `alias` asks, the result is a view of it or `node` writes to it."""
    if node.op != "call_function" or _alias_of(node.target) is not alias:
        return None
    return node.args[0] if node.args and isinstance(node.args[0], Node) else None


@cache
def _alias_of(target: object) -> _Alias | None:
    # Of the schema, which is not read for every call anew: that takes longer than all else that is asked of a node.
    schema = getattr(target, "_schema", None)
    alias = schema.arguments[0].alias_info if schema is not None and schema.arguments else None
    return None if alias is None else _Alias(alias.is_write)


def written_buffers(graph_module: GraphModule) -> dict[str, torch.Tensor]:
    """Returns the parameters and buffers that a call of the graph writes to, each once, by their names in the graph."""
    nodes = list(graph_module.graph.nodes)
    written = find_written_values(nodes)
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for node in nodes:
        if node.op == "get_attr" and node in written:
            tensor = evaluate(node, graph_module)
            found.setdefault(id(tensor), (str(node.target), tensor))
    return dict(found.values())
