"""Insertion of observers into an annotated graph, which can then be calibrated."""

from collections.abc import Collection, Mapping

from torch import nn
from torch.fx import GraphModule, Node

from coreml_quantizer.calibration.observing import name_modules
from coreml_quantizer.estimators import RangeObserver
from coreml_quantizer.graph.constant_folding import fold_constants
from coreml_quantizer.graph.values import evaluate, find_constants, find_written_values
from coreml_quantizer.half.constants import round_constants_to_half
from coreml_quantizer.placement import prepare_kind
from coreml_quantizer.placement.annotator import Placement
from coreml_quantizer.placement.insertion import insert_observers
from coreml_quantizer.placement.sharing import Place
from coreml_quantizer.rules import rules


def wrap_for_calibration(
    graph_module: GraphModule,
    observers: Mapping[Place, nn.Module],
    placement: Placement,
    others: Collection[Place] = (),
) -> None:
    """Folds and rounds float constants, ties observers of weights to them, and inserts all observers.

    Args:
        graph_module: The annotated graph, changed in place.
        observers: Observer of every annotated node or edge; those that share have the same object.
        placement: Which of these are weights, and which have values that are new to their sharing group.
        others: Edges into nodes that other quantizers annotated; constants that they read stay as they are.

    Raises:
        QuantizerError: The model was exported in training mode.
    """
    prepare_kind.refuse_training_mode(graph_module)
    prepare_kind.warn_of_settings(observers.values())
    nodes = list(graph_module.graph.nodes)
    constants = find_constants(nodes, find_written_values(nodes)) if others else frozenset[Node]()
    kept = (*placement.weights, *(edge for edge in others if isinstance(edge, tuple) and edge[0] in constants))
    fold_constants(graph_module, keep={constant for constant, _ in kept})
    round_constants_to_half(graph_module, kept, rules)
    _watch_weights(graph_module, observers, placement.weights)
    insert_observers(graph_module, observers, placement.sources)
    name_modules(graph_module)


def _watch_weights(
    model: GraphModule, observers: Mapping[Place, nn.Module], weights: tuple[tuple[Node, Node], ...]
) -> None:
    """Ties each weight to its observer: it needs no calibration sample and costs nothing during calibration."""
    for edge in weights:
        observer = observers[edge]
        if isinstance(observer, RangeObserver) and not observer.constant:
            observer.watch_weight(evaluate(edge[0], model))
