"""Puts the observers of an annotated graph into it, in time linear in their number.

torchao inserts them too, after asking the quantizer for a last word on them (`prepare_obs_or_fq_callback`), but walks
over all parameters and all earlier observers for each one. The quantizer therefore inserts them in that callback and
leaves torchao none to insert.
"""

from collections.abc import Mapping

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from coreml_quantizer.sharing import Place

_PREFIX = "activation_post_process_"
"""torchao's own prefix: its convert step and users' scripts look for it."""


def insert_observers(graph_module: GraphModule, observers: Mapping[Place, torch.nn.Module]) -> None:
    """Inserts each observer behind the node, or on the edge, that it belongs to; one call node per observed value.

    Args:
        graph_module: The annotated graph, changed in place.
        observers: Observer of every annotated place; the same object at places that share.
    """
    inserter = _Inserter(graph_module)
    outputs = {place: observer for place, observer in observers.items() if isinstance(place, Node)}
    edges: dict[Node, dict[Node, torch.nn.Module]] = {}
    for place, observer in observers.items():
        if isinstance(place, tuple):
            edges.setdefault(place[1], {})[place[0]] = observer
    for node in list(graph_module.graph.nodes):
        if node in edges:
            inserter.observe_inputs(node, edges[node])
        if node in outputs:
            inserter.observe_output(node, outputs[node])


class _Inserter:
    def __init__(self, graph_module: GraphModule) -> None:
        self._graph_module = graph_module
        self._names: dict[int, str] = {}
        self._calls: dict[tuple[Node, int], Node] = {}

    def observe_inputs(self, node: Node, wanted: Mapping[Node, torch.nn.Module]) -> None:
        def observed(source: Node) -> Node:
            observer = wanted.get(source)
            return source if observer is None else self._call(source, observer)

        node.args = map_arg(node.args, observed)
        node.kwargs = map_arg(node.kwargs, observed)

    def observe_output(self, node: Node, observer: torch.nn.Module) -> None:
        users = list(node.users)
        call = self._call(node, observer)
        for user in users:
            user.replace_input_with(node, call)

    def _call(self, source: Node, observer: torch.nn.Module) -> Node:
        """Returns the node that shows the value of `source` to `observer`, the existing one if there is one."""
        key = (source, id(observer))
        if key not in self._calls:
            with self._graph_module.graph.inserting_after(source):
                self._calls[key] = self._graph_module.graph.call_module(self._name(observer), (source,))
        return self._calls[key]

    def _name(self, observer: torch.nn.Module) -> str:
        if id(observer) not in self._names:
            name = f"{_PREFIX}{len(self._names)}"
            self._names[id(observer)] = name
            self._graph_module.add_module(name, observer)
        return self._names[id(observer)]
