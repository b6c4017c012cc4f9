"""The ends of a model: its first and last layers, and the operators that read its inputs or make its outputs."""

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from coreml_quantizer.config.policy import QuantizationPolicy
from coreml_quantizer.graph.values import find_constants, find_written_values
from coreml_quantizer.placement.operands import weight_axes
from coreml_quantizer.rules import RuleTable, Treatment

_MOVES = frozenset({Treatment.SHARED, Treatment.SPLIT})
_FOLLOWS = frozenset({Treatment.ACTIVATION, Treatment.BATCH_NORM})
AS_CONFIGURED = "as_configured"


@dataclass(frozen=True)
class End:
    """An end of the model: the first or the last layer.

    Attributes:
        name: "first_layer" or "last_layer".
        keeps_weights: Whether the weights of the layer are quantized as configured and only its activations are not.
    """

    name: str
    keeps_weights: bool


@dataclass(frozen=True)
class Boundaries:
    """The nodes that a policy treats differently because they are at an end of the model."""

    ends: dict[Node, End]
    readers: frozenset[Node]
    makers: frozenset[Node]

    @staticmethod
    def of(policy: QuantizationPolicy, graph_module: GraphModule, rules: RuleTable) -> "Boundaries":
        """Finds the nodes that `policy` treats differently, in time linear in the number of nodes.

        Finds none when the policy treats no end differently.
        """
        nodes = list(graph_module.graph.nodes)
        layers = {
            "last_layer": (policy.last_layer, _last_layers),
            "first_layer": (policy.first_layer, _first_layers),
        }
        asked = {name: layer for name, layer in layers.items() if layer[0] != AS_CONFIGURED}
        weighted = frozenset(_weighted(nodes, rules)) if asked else frozenset()
        found: dict[Node, End] = {}
        for name, (wanted, finder) in asked.items():
            found.update(dict.fromkeys(finder(nodes, weighted), End(name, wanted == "weight_only")))
        readers = frozenset() if policy.quantizes_inputs else frozenset(_readers(nodes, rules))
        makers = (
            frozenset() if policy.quantizes_outputs else frozenset(_makers(graph_module.graph.output_node(), rules))
        )
        return Boundaries(found, readers, makers)

    def __bool__(self) -> bool:
        return bool(self.ends or self.readers or self.makers)

    def end_of(self, node: Node) -> End | None:
        """Returns the end that `node` belongs to, None when it belongs to none."""
        return self.ends.get(node)

    def reads_input(self, node: Node) -> bool:
        """Returns whether `node` reads an input of the model, unchanged or rearranged, or is fused into a reader."""
        return node in self.readers

    def makes_output(self, node: Node) -> bool:
        """Returns whether `node` makes an output of the model.

        It may do so directly, or through operators that are fused into it or only move values.
        """
        return node in self.makers


def _weighted(nodes: list[Node], rules: RuleTable) -> Iterable[Node]:
    """Yields the calls that have weights."""
    constants = find_constants(nodes, find_written_values(nodes))
    for node in nodes:
        rule = rules.lookup(node)
        if rule is not None and weight_axes(node, rule, constants):
            yield node


def _first_layers(nodes: list[Node], weighted: Container[Node]) -> Iterable[Node]:
    return _without(nodes, weighted, lambda node: node.all_input_nodes)


def _last_layers(nodes: list[Node], weighted: Container[Node]) -> Iterable[Node]:
    return _without(nodes[::-1], weighted, lambda node: list(node.users))


def _without(nodes: list[Node], weighted: Container[Node], neighbours: Callable[[Node], list[Node]]) -> Iterable[Node]:
    """Yields the layers with weights that no other layer with weights precedes, in the order of `nodes`."""
    behind: set[Node] = set()
    for node in nodes:
        if any(other in behind for other in neighbours(node)):
            behind.add(node)
        elif node in weighted:
            behind.add(node)
            yield node


def _readers(nodes: list[Node], rules: RuleTable) -> Iterable[Node]:
    carried = {node for node in nodes if node.op == "placeholder"}
    fused: set[Node] = set()
    for node in nodes:
        rule = rules.lookup(node)
        treatment = None if rule is None else rule.treatment
        if treatment in _FOLLOWS and node.all_input_nodes[0] in fused:
            fused.add(node)
            yield node
        elif any(source in carried for source in node.all_input_nodes):
            (carried if treatment in _MOVES else fused).add(node)
            yield node


def _makers(output: Node, rules: RuleTable) -> Iterable[Node]:
    waiting = list(output.all_input_nodes)
    while waiting:
        node = waiting.pop()
        if len(node.users) != 1:
            continue
        yield node
        rule = rules.lookup(node)
        if rule is not None and rule.treatment in _MOVES | _FOLLOWS:
            waiting.append(node.all_input_nodes[0])
