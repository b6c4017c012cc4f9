"""Constant folding: replaces computations on constants alone by their results.

Examples are rotary tables, relative position biases and a learned temperature. Conversion to Core ML computes them once
in float32 and stores the result in float16. If it is folded here, the result is rounded in the graph as well, and both
compute with the same numbers.
"""

from collections.abc import Container

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from coreml_quantizer.graph.values import evaluate, find_constants, find_feeding, find_written_values

_LARGEST = 2**20
"""The most elements that a stored result may have; Core ML Tools too lets the device compute larger ones."""

_PREFIX = "_folded_constant"


def fold_constants(graph_module: GraphModule, keep: Container[Node] = ()) -> None:
    """Stores the results of computations on constants as buffers, in place.

    Views of constants stay: they are exact, and storing them would only copy. Nodes that are only read by kept nodes
    stay too.

    Args:
        graph_module: An exported graph.
        keep: Nodes that stay as they are, such as weights that are going to be quantized.
    """
    nodes = list(graph_module.graph.nodes)
    constants = find_constants(nodes, find_written_values(nodes))
    left = find_feeding(nodes, keep)
    candidates = [node for node in nodes if node in constants and node not in keep and node not in left]
    folded = [node for node in candidates if _is_worth_it(node, constants)]
    # From the end, so that operators that write in place are gone before what they write to is stored.
    for index, node in reversed(list(enumerate(folded))):
        if node.users and not any(_writes(user) for user in node.users):
            _store(graph_module, node, f"{_PREFIX}_{index}")
            _erase_unread(node, keep)


def _is_worth_it(node: Node, constants: Container[Node]) -> bool:
    value = node.meta.get("val")
    computes = node.op == "call_function" and bool(node.all_input_nodes) and not _is_view(node) and not _is_random(node)
    small = isinstance(value, Tensor) and value.is_floating_point() and value.numel() <= _LARGEST
    return computes and small and any(user not in constants or _is_view(user) for user in node.users)


def _is_view(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    aliased = schema is not None and bool(schema.arguments) and schema.arguments[0].alias_info is not None
    return aliased and not _writes(node)


def _writes(node: Node) -> bool:
    """Returns whether `node` writes in place, which would change a stored value at every call of the model."""
    schema = getattr(node.target, "_schema", None)
    aliases = (argument.alias_info for argument in schema.arguments) if schema is not None else ()
    return any(alias is not None and alias.is_write for alias in aliases)


def _is_random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _store(graph_module: GraphModule, node: Node, name: str) -> None:
    value = evaluate(node, graph_module)
    graph_module.register_buffer(name, value.detach().clone())
    with graph_module.graph.inserting_before(node):
        stored = graph_module.graph.get_attr(name)
    stored.meta = dict(node.meta)
    node.replace_all_uses_with(stored)


def _erase_unread(node: Node, keep: Container[Node]) -> None:
    """Removes the nodes that computed a constant and that nothing reads any more.

    Dead code elimination does not fit here: it keeps nodes that write in place, and it removes parts of the model that
    the output never needed, whose weights have observers.
    """
    waiting = [node]
    while waiting:
        unread = waiting.pop()
        if not unread.users and unread not in keep and not unread._erased:
            waiting += unread.all_input_nodes
            unread.graph.erase_node(unread)
