"""The step that turns an annotated graph into a graph that trains."""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.export_utils import _EXPORTED_TRAINING_ATTR as MODE

from coreml_quantizer.graph.convolutions import LAYERS, transposed_groups
from coreml_quantizer.graph.modes import trains
from coreml_quantizer.graph.stochastic_depth import AXES
from coreml_quantizer.placement.annotator import Placement
from coreml_quantizer.placement.insertion import insert_observers
from coreml_quantizer.placement.sharing import Place
from coreml_quantizer.qat.graphs.finishing import Finisher
from coreml_quantizer.qat.graphs.hiding import HiddenBatchNorm
from coreml_quantizer.qat.graphs.refusals import refuse_half_precision
from coreml_quantizer.qat.layers.deferred_activation import defer_activations
from coreml_quantizer.qat.layers.dropout import KINDS, Dropout, StochasticDepth
from coreml_quantizer.qat.layers.mode_operator import Modal
from coreml_quantizer.qat.quantizers.base import FakeQuantizer, Follower
from coreml_quantizer.qat.quantizers.factory import fake_quantizer_of
from coreml_quantizer.qat.quantizers.fixed import FixedFakeQuantize
from coreml_quantizer.qat.quantizers.folded_weight import FoldedWeight
from coreml_quantizer.qat.schedule import Scheduled, most_common_milestones

aten = torch.ops.aten

Edge = tuple[Node, Node]

FINISHER = "_finisher"
_COUNTER = "num_batches_tracked"


def wrap_for_training(
    graph_module: GraphModule,
    observers: Mapping[Place, nn.Module],
    placement: Placement,
    hidden: Sequence[HiddenBatchNorm],
) -> list[Scheduled]:
    """Inserts fake quantizers, and makes operators that depend on the mode follow the mode of the model.

    Args:
        graph_module: The annotated graph with hidden batch norms, changed in place.
        observers: Observer of every annotated place; the same object for places that share.
        placement: Which places are weights, and which places have values that are new to their sharing group.
        hidden: The hidden batch norms.

    Returns:
        The modules that have milestones.

    Raises:
        QuantizerError: The model is in half precision.
    """
    refuse_half_precision(observers)
    mode = _add_mode(graph_module, hidden)
    folded = _Folded(observers, hidden)
    quantizers = _quantizers_of(graph_module, observers, placement.weights, folded)
    insert_observers(graph_module, quantizers, placement.sources)
    _train_batch_norms(graph_module, hidden, mode, folded)
    _train_dropouts(graph_module, mode)
    _train_modal(graph_module, mode)
    defer_activations(graph_module)
    _pass_mode(graph_module, mode)
    _add_finisher(graph_module)
    graph_module.recompile()
    return [module for module in graph_module.modules() if isinstance(module, Scheduled)]


class _Folded:
    """The batch norms that fold into layers, by layer."""

    def __init__(self, observers: Mapping[Place, nn.Module], hidden: Sequence[HiddenBatchNorm]) -> None:
        uses = Counter(id(observer) for observer in observers.values())
        self.by_layer: dict[Node, HiddenBatchNorm] = {}
        for batch_norm in hidden:
            layer = batch_norm.node.args[0]
            if not isinstance(layer, Node) or not _absorbs(layer, batch_norm):
                continue
            observer = observers.get(_weight_edge(layer))
            if observer is not None and uses[id(observer)] == 1:
                self.by_layer[layer] = batch_norm


def _absorbs(layer: Node, batch_norm: HiddenBatchNorm) -> bool:
    grouped = transposed_groups(layer) != 1  # its output channels lie on two axes
    has_statistics = isinstance(batch_norm.args[3], Node) and isinstance(batch_norm.args[4], Node)
    # A linear layer has its channels on the last axis, a batch norm on axis 1.
    misaligned = layer.target is torch.ops.aten.linear.default and layer.meta["val"].ndim > 2
    return layer.target in LAYERS and len(layer.users) == 1 and has_statistics and not grouped and not misaligned


def _weight_edge(layer: Node) -> Edge:
    weight = layer.args[1]
    assert isinstance(weight, Node)
    return weight, layer


def _quantizers_of(
    graph_module: GraphModule, observers: Mapping[Place, nn.Module], weights: Iterable[Edge], folded: _Folded
) -> dict[Place, nn.Module]:
    """Returns the fake quantizer of every place, one for each observer."""
    made: dict[int, nn.Module] = {}
    for constant, layer in weights:
        observer = observers[constant, layer]
        if id(observer) in made:
            continue
        quantizer = fake_quantizer_of(observer, constant.meta["val"])
        batch_norm = folded.by_layer.get(layer)
        if batch_norm is not None:
            made[id(observer)] = FoldedWeight(quantizer, LAYERS[layer.target], batch_norm.module.eps)
        else:
            made[id(observer)] = quantizer
    for observer in observers.values():
        if id(observer) not in made:
            made[id(observer)] = fake_quantizer_of(observer)
    quantizers = {place: made[id(observer)] for place, observer in observers.items()}
    _schedule_fixed(quantizers.values())
    return quantizers


def _schedule_fixed(quantizers: Iterable[nn.Module]) -> None:
    """Gives fixed fake quantizers the milestones that most of the others have."""
    quantizers = list(quantizers)
    milestones = most_common_milestones(quantizers)
    for quantizer in quantizers:
        if isinstance(quantizer, FixedFakeQuantize):
            quantizer.schedule(milestones)


def _train_batch_norms(
    graph_module: GraphModule, hidden: Sequence[HiddenBatchNorm], mode: Node, folded: _Folded
) -> None:
    default = most_common_milestones(graph_module.modules())
    counters = _take_counters(graph_module)
    for batch_norm in hidden:
        node, layer = batch_norm.node, batch_norm.args[0]
        statistics = node.args[3]
        counter = counters.get(str(getattr(statistics, "target", "")).rpartition(".")[0])
        node.args = (*node.args, counter, mode)
        batch_norm.module.schedule(default)
        if layer in folded.by_layer:
            call = layer.args[1]
            quantizer = graph_module.get_submodule(call.target)
            assert isinstance(quantizer, FoldedWeight)
            batch_norm.module.schedule(quantizer.quantizer.milestones)
            call.args = (call.args[0], mode, *_read_before(call, [node.args[1], node.args[4]]))
            call.meta["folded_weight"] = True


def _read_before(call: Node, parameters: Iterable[Any]) -> list[Node | None]:
    """Reads parameters of the batch norm again before `call`, because the batch norm comes after the layer."""
    with call.graph.inserting_before(call):
        return [call.graph.node_copy(found) if isinstance(found, Node) else None for found in parameters]


def _take_counters(graph_module: GraphModule) -> dict[str, Node]:
    """Removes the additions to batch counters; returns the counters by the module path of their batch norm."""
    counters = {}
    for node in list(graph_module.graph.nodes):
        counter = node.args[0] if node.target is aten.add_.Tensor else None
        if isinstance(counter, Node) and counter.op == "get_attr" and str(counter.target).endswith(_COUNTER):
            counters[str(counter.target).rpartition(".")[0]] = counter
            graph_module.graph.erase_node(node)
    return counters


def _train_dropouts(graph_module: GraphModule, mode: Node) -> None:
    found = [node for node in graph_module.graph.nodes if node.target in KINDS]
    for index, node in enumerate(found):
        name = f"_dropout_{index}"
        axes = node.meta.get(AXES)
        module = Dropout(node.target, node.args[1]) if axes is None else StochasticDepth(node.args[1], axes)
        graph_module.add_submodule(name, module)
        node.op, node.target, node.args = "call_module", name, (node.args[0], mode)


def _train_modal(graph_module: GraphModule, mode: Node) -> None:
    found = [node for node in graph_module.graph.nodes if trains(node)]
    for index, node in enumerate(found):
        Modal.take(graph_module, node, f"_modal_{index}", mode)


def _pass_mode(graph_module: GraphModule, mode: Node) -> None:
    for node in graph_module.graph.nodes:
        if node.op == "call_module" and len(node.args) == 1:
            module = graph_module.get_submodule(node.target)
            if isinstance(module, FakeQuantizer | Follower):
                node.args = (*node.args, mode)


def _add_mode(graph_module: GraphModule, hidden: Sequence[HiddenBatchNorm]) -> Node:
    """Adds the attribute in which torchao keeps whether an exported model trains, and a node that reads it."""
    training = any(batch_norm.trains for batch_norm in hidden) or any(trains(node) for node in graph_module.graph.nodes)
    setattr(graph_module, MODE, True if training else None)
    with graph_module.graph.inserting_before(next(iter(graph_module.graph.nodes))), warnings.catch_warnings():
        # It is a plain attribute, which the graph reads as well as a buffer.
        warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node with no underlying reference")
        return graph_module.graph.get_attr(MODE)


def _add_finisher(graph_module: GraphModule) -> None:
    """Adds a module on the first output, which conversion reaches last."""
    output = graph_module.graph.output_node()
    result = output.all_input_nodes[0]
    graph_module.add_submodule(FINISHER, Finisher())
    with graph_module.graph.inserting_before(output):
        call = graph_module.graph.call_module(FINISHER, (result,))
    output.replace_input_with(result, call)
