"""Quantizers that work on one graph together, as in torchao's `ComposableQuantizer`.

Each annotates what no other has annotated. The first one that torchao asks for observers inserts those of all
`CoreMLQuantizer`s at once, and leaves those of other quantizers to torchao.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from coreml_quantizer.placement.annotator import Placement
from coreml_quantizer.placement.decisions import forget_decisions
from coreml_quantizer.placement.places import Annotation
from coreml_quantizer.placement.sharing import Place
from coreml_quantizer.qat.graphs.hiding import HiddenBatchNorm

_KEY = "coreml_quantizer_waiting"


@dataclass(frozen=True)
class Annotated:
    """What annotating a graph leaves for the insertion of observers.

    Attributes:
        placement: The places of quantizers.
        hidden: The hidden batch norms.
    """

    placement: Placement
    hidden: tuple[HiddenBatchNorm, ...]


def forget_earlier(model: GraphModule) -> None:
    """Removes annotations and decisions that an earlier preparation left in the graph."""
    model.meta.pop(_KEY, None)
    forget_decisions(model)
    for node in model.graph.nodes:
        if isinstance(node.meta.get(Q_ANNOTATION_KEY), Annotation):
            del node.meta[Q_ANNOTATION_KEY]


def leave(model: GraphModule, placement: Placement, hidden: list[HiddenBatchNorm]) -> None:
    """Leaves what one quantizer decided with the graph, for whichever of them inserts the observers."""
    model.meta.setdefault(_KEY, []).append(Annotated(placement, tuple(hidden)))


def take(model: GraphModule) -> Annotated | None:
    """Returns what all quantizers left, as one; None where nothing waits."""
    waiting: list[Annotated] = model.meta.pop(_KEY, [])
    if not waiting:
        return None
    placement = Placement(
        weights=tuple(edge for left in waiting for edge in left.placement.weights),
        sources=frozenset[Place]().union(*(left.placement.sources for left in waiting)),
    )
    return Annotated(placement, tuple(batch_norm for left in waiting for batch_norm in left.hidden))


def take_own(observers: dict[Place, nn.Module]) -> dict[Place, nn.Module]:
    """Removes the observers of our annotations from torchao's map, and returns them."""
    own = [place for place in observers if _is_own(place)]
    return {place: observers.pop(place) for place in own}


def constants_of_others(observers: Mapping[Place, nn.Module]) -> frozenset[Place]:
    """Returns the edges into nodes that other quantizers annotated: what they read is not ours to round."""
    nodes = {place[1] if isinstance(place, tuple) else place for place in observers}
    return frozenset((source, node) for node in nodes for source in node.all_input_nodes)


def _is_own(place: Place) -> bool:
    node = place[1] if isinstance(place, tuple) else place
    return isinstance(node.meta.get(Q_ANNOTATION_KEY), Annotation)
