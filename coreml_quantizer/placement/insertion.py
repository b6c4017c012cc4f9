"""The insertion of observers into an annotated graph, in time linear in their number.

torchao can insert observers too, but for each one it walks over all parameters and all earlier observers. Before it
inserts them, it calls `prepare_obs_or_fq_callback` of the quantizer. The quantizer therefore inserts all observers in
that callback and leaves none to torchao.
"""

from collections.abc import Container, Mapping
from typing import Any

from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from coreml_quantizer.placement.sharing import Place

_PREFIX = "activation_post_process_"
"""The prefix that torchao gives to observers; its convert step and users' scripts look for it."""


def insert_observers(graph_module: GraphModule, observers: Mapping[Place, Any], sources: Container[Place]) -> None:
    """Inserts an observer behind each annotated node and on each annotated edge; one call node per observed value.

    Places that share parameters get siblings of one observer. Siblings keep their own statistics and return the same
    scale and zero point.

    Args:
        graph_module: The annotated graph, changed in place.
        observers: Observer, or fake quantizer, of every annotated place; the same object for places that share. If it
            has a method `sibling`, as ours do, further values of the group get its siblings. If it has an attribute
            `tensor_name`, the name of the tensor is written into it.
        sources: Places whose values are new to their group. The other places only copy or average values, so observing
            them would add nothing.
    """
    inserter = _Inserter(graph_module, sources)
    outputs = {place: observer for place, observer in observers.items() if isinstance(place, Node)}
    edges: dict[Node, dict[Node, Any]] = {}
    for place, observer in observers.items():
        if isinstance(place, tuple):
            edges.setdefault(place[1], {})[place[0]] = observer
    for node in list(graph_module.graph.nodes):
        if node in edges:
            inserter.observe_inputs(node, edges[node])
        if node in outputs:
            inserter.observe_output(node, outputs[node])


class _Inserter:
    def __init__(self, graph_module: GraphModule, sources: Container[Place]) -> None:
        self._graph_module = graph_module
        self._sources = sources
        self._placed: set[int] = set()
        self._calls: dict[tuple[Node, int], Node] = {}
        self._count = 0

    def observe_inputs(self, node: Node, wanted: Mapping[Node, Any]) -> None:
        def observed(source: Node) -> Node:
            observer = wanted.get(source)
            return source if observer is None else self._call(source, (source, node), observer)

        node.args = map_arg(node.args, observed)
        node.kwargs = map_arg(node.kwargs, observed)

    def observe_output(self, node: Node, observer: Any) -> None:
        users = list(node.users)
        call = self._call(node, node, observer)
        for user in users:
            user.replace_input_with(node, call)

    def _call(self, value: Node, place: Place, observer: Any) -> Node:
        """Returns the node that calls `observer`, or a sibling of it, on `value`; inserts the node if needed."""
        key = (value, id(observer))
        if key not in self._calls:
            name = self._add(place, observer)
            with self._graph_module.graph.inserting_after(value):
                self._calls[key] = self._graph_module.graph.call_module(name, (value,))
        return self._calls[key]

    def _add(self, place: Place, observer: Any) -> str:
        name = f"{_PREFIX}{self._count}"
        self._count += 1
        if hasattr(observer, "sibling"):
            if id(observer) in self._placed:
                observer = observer.sibling(observes=place in self._sources)
            self._placed.add(id(observer))
        if hasattr(observer, "tensor_name"):
            observer.tensor_name = (place if isinstance(place, Node) else place[0]).name
        self._graph_module.add_module(name, observer)
        return name
