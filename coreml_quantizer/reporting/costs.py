"""The costs of a graph: multiply-adds of its operators, and bytes of its weights."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch.fx import GraphModule, Node

from coreml_quantizer.calibration.observing import find_observers
from coreml_quantizer.errors import QuantizerError
from coreml_quantizer.placement.decisions import Decision
from coreml_quantizer.reporting.macs import multiply_adds
from coreml_quantizer.specs import PerBlock, PerChannelGroup
from coreml_quantizer.weights import BlockObserver, PaletteObserver

_CONVERTED = (
    "This graph is converted already; convert_pt2e changes the graph that it is given, too. Report on what "
    "prepare_pt2e returned, before convert_pt2e."
)


@dataclass(frozen=True)
class Costs:
    """The costs of one graph, summed up.

    Attributes:
        macs: Multiply-adds.
        quantized_macs: Multiply-adds that read quantized activations.
        bytes: Bytes of float parameters and buffers that the graph reads, each counted once.
        quantized_bytes: Bytes of those tensors that are quantized.
        misfits: Messages about weights that their block or group size does not divide.
    """

    macs: int
    quantized_macs: int
    bytes: int
    quantized_bytes: int
    misfits: tuple[str, ...]


def measure(prepared: GraphModule, decisions: Iterable[Decision]) -> Costs:
    """Adds up the costs of a prepared graph.

    Raises:
        QuantizerError: The weights of the graph are converted already.
    """
    tensors = _tensors(prepared)
    quantized = {name for found in decisions for name in found.weights}
    if not quantized <= tensors.keys() and not any("." in found.node for found in decisions):
        raise QuantizerError(_CONVERTED)
    # What computes in floating point may read what others quantized.
    quantizes = {found.node for found in decisions if found.outcome != "float" and found.activations}
    macs = quantized_macs = 0
    for name, node, graph in _calls(prepared):
        count = multiply_adds(node, graph)
        macs += count
        if count and name in quantizes and _reads_quantized(node, graph):
            quantized_macs += count
    return Costs(
        macs,
        quantized_macs,
        _bytes(tensors.values()),
        _bytes(tensors[name] for name in quantized if name in tensors),
        tuple(_misfits(prepared)),
    )


def _calls(prepared: GraphModule) -> Iterator[tuple[str, Node, GraphModule]]:
    """Yields every call as (name, node, graph), where the name is that in the decisions.

    Branches and bodies of control flow count as if each ran once.
    """
    for path, graph in prepared.named_modules():
        if isinstance(graph, GraphModule):
            for node in graph.graph.nodes:
                if node.op == "call_function":
                    yield f"{path}.{node.name}" if path else node.name, node, graph


def _reads_quantized(node: Node, graph_module: GraphModule) -> bool:
    """Returns whether `node` reads anything but a weight through an observer, or a fake quantizer in training."""
    sources = (source for source in node.all_input_nodes if source.op == "call_module")
    return any(
        hasattr(graph_module.get_submodule(str(source.target)), "calculate_qparams")
        and source.all_input_nodes[0].op != "get_attr"
        for source in sources
    )


def _tensors(graph_module: GraphModule) -> dict[str, torch.Tensor]:
    """Returns the float tensors that a graph reads, by name; a tied tensor has several names."""
    read = [str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr" and node.users]
    try:
        values = {name: attrgetter(name)(graph_module) for name in read}
    except AttributeError as error:
        raise QuantizerError(_CONVERTED) from error
    return {name: v for name, v in values.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    distinct = {id(tensor): tensor for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())


def _misfits(prepared: GraphModule) -> Iterable[str]:
    for observer in find_observers(prepared).values():
        granularity = observer.spec.granularity
        if not isinstance(observer, BlockObserver | PaletteObserver):
            continue
        if isinstance(granularity, PerBlock | PerChannelGroup) and granularity.size not in observer.block_sizes():
            kind = "block_size" if isinstance(granularity, PerBlock) else "group_size"
            instead = "per channel" if isinstance(granularity, PerBlock) else "as one group"
            yield (
                f"{kind}={granularity.size} does not divide '{observer.tensor_name}' of shape "
                f"{tuple(observer.weight.shape)}, which is quantized {instead}."
            )
