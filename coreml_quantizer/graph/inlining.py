"""Inlining of the subgraphs that `torch.no_grad()` and disabled `torch.autocast` leave in an exported graph.

Each of these contexts becomes an operator with a subgraph, which quantization does not enter. At inference the context
changes nothing.
"""

import operator

import torch
from torch.fx import GraphModule, Node

_NO_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_AUTOCAST_ENABLED = 2
_GRAPH_AT: dict[object, int] = {_NO_GRAD: 1, _AUTOCAST: 4}
"""Operator -> the position of the subgraph among its arguments; the arguments of the subgraph follow it."""


def inline_contexts(graph_module: GraphModule) -> None:
    """Inlines gradient modes and disabled autocasts, including nested ones, in place."""
    changed = False
    while wrapped := [node for node in graph_module.graph.nodes if _is_context(node)]:
        for node in wrapped:
            _inline(graph_module, node)
        changed = True
    if changed:
        graph_module.graph.eliminate_dead_code()
        graph_module.recompile()


def _is_context(node: Node) -> bool:
    if node.target not in _GRAPH_AT:
        return False
    only_parts = all(user.target is operator.getitem for user in node.users)
    return only_parts and (node.target is _NO_GRAD or not node.args[_AUTOCAST_ENABLED])


def _inline(graph_module: GraphModule, node: Node) -> None:
    position = _GRAPH_AT[node.target]
    holder = node.args[position]
    assert isinstance(holder, Node)
    path = str(holder.target)
    inner: GraphModule = graph_module.get_submodule(path)  # type: ignore[assignment]
    placeholders = [found for found in inner.graph.nodes if found.op == "placeholder"]
    values = dict(zip(placeholders, node.args[position + 1 :], strict=True))
    graph = graph_module.graph
    with graph.inserting_before(node):
        for source in inner.graph.nodes:
            if source.op not in ("placeholder", "output"):
                values[source] = copied = graph.node_copy(source, lambda found: values[found])
                if source.op == "get_attr":
                    copied.target = f"{path}.{source.target}"
    (results,) = inner.graph.output_node().args
    for user in list(node.users):
        found = results[user.args[1]]  # type: ignore[index]
        user.replace_all_uses_with(values[found])
        graph.erase_node(user)
    graph.erase_node(node)
