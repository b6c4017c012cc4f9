"""ExecuTorch's own quantizer and ours at the same places, on models where both run."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from coremltools.optimize.torch.quantization import LinearQuantizerConfig, ModuleLinearQuantizerConfig
from helpers import models
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from coreml_quantizer import CoreMLQuantizer, rules
from coreml_quantizer.placement import prepare_kind
from coreml_quantizer.placement.annotator import Placement
from coreml_quantizer.placement.operands import operand
from coreml_quantizer.placement.places import Places
from coreml_quantizer.placement.sharing import SharingGroups

CONFIG = LinearQuantizerConfig(global_config=ModuleLinearQuantizerConfig(quantization_scheme="symmetric"))

Model = tuple[nn.Module, tuple[Tensor, ...]]
Annotations = dict[str, QuantizationAnnotation]
"""What the stock quantizer writes on the nodes of a graph, by their names."""


def stock_annotations(model: nn.Module, inputs: tuple[Tensor, ...]) -> Annotations:
    """Takes most of a minute: the stock quantizer exports 405 patterns."""
    from executorch.backends.apple.coreml.quantizer import CoreMLQuantizer as StockQuantizer

    quantizer = _Recorded(StockQuantizer(CONFIG))
    prepare_pt2e(torch.export.export(model, inputs).module(), quantizer)
    return quantizer.found


class _Recorded(Quantizer):
    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self._quantizer = quantizer
        self.found: Annotations = {}

    def annotate(self, model: GraphModule) -> GraphModule:
        self._quantizer.annotate(model)
        annotations = {node.name: node.meta.get(Q_ANNOTATION_KEY) for node in model.graph.nodes}
        self.found = {name: found for name, found in annotations.items() if found is not None}
        return model

    def validate(self, model: GraphModule) -> None:
        pass


class StockAgain(Quantizer):
    """The stock quantizer with what it decided before, on another graph of the same network."""

    def __init__(self, annotations: Annotations) -> None:
        super().__init__()
        self._annotations = annotations

    def annotate(self, model: GraphModule) -> GraphModule:
        nodes = {node.name: node for node in model.graph.nodes}
        for name, found in self._annotations.items():
            nodes[name].meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                {nodes[source.name]: _moved(spec, nodes) for source, spec in found.input_qspec_map.items()},
                _moved(found.output_qspec, nodes),
                _annotated=True,
            )
        return model

    def validate(self, model: GraphModule) -> None:
        pass


def _moved(spec: QuantizationSpecBase | None, nodes: Mapping[str, Node]) -> QuantizationSpecBase | None:
    """Makes what shares with a place share with the same place of another graph."""
    if not isinstance(spec, SharedQuantizationSpec):
        return spec
    place = spec.edge_or_node
    names = (place.name,) if isinstance(place, Node) else tuple(node.name for node in place)
    moved = tuple(nodes[name] for name in names)
    return SharedQuantizationSpec(moved[0] if isinstance(place, Node) else (moved[0], moved[1]))


class AtStockPlaces(CoreMLQuantizer):
    """Ours, with observers only where the stock quantizer has them."""

    def __init__(self, annotations: Annotations, config: object = None) -> None:
        super().__init__(config)
        self._annotations = annotations

    def annotate(self, model: GraphModule) -> GraphModule:
        nodes = list(model.graph.nodes)
        by_name = {node.name: node for node in nodes}
        spec = self._policy.default
        places = Places(SharingGroups({node: index for index, node in enumerate(nodes)}))
        for node in nodes:
            rule = rules.lookup(node)
            if rule is not None:
                places.ranges[node] = rule.range_of(node, self._policy.fixes_known_ranges)
            found = self._annotations.get(node.name)
            if found is None:
                continue
            axis = 0 if rule is None or rule.weight is None else rule.weight.channel_axis
            for there, stock_spec in found.input_qspec_map.items():
                source = by_name[there.name]
                if stock_spec is None:
                    continue
                if rule is not None and rule.weight is not None and source is operand(node, rule.weight.position):
                    places.quantize_weight(source, node, spec.weight.along(axis))
                else:
                    places.quantize_edge(source, node, spec.input)
            if found.output_qspec is not None:
                places.quantize_output(node, spec.output)
        places.annotate(nodes)
        self._placement = Placement(tuple(places.weights), frozenset(places.sources))
        prepare_kind.plant(model)
        return model


@dataclass(frozen=True)
class Batches:
    """Random inputs, some to calibrate on and others to compare on."""

    calibration: list[tuple[Tensor, ...]]
    held_out: list[tuple[Tensor, ...]]


def batches_like(inputs: tuple[Tensor, ...]) -> Batches:
    generator = torch.Generator().manual_seed(1)
    made = [tuple(torch.randn(x.shape, generator=generator) for x in inputs) for _ in range(40)]
    return Batches(made[:20], made[20:])


def fidelity(model: nn.Module, inputs: tuple[Tensor, ...], quantizer: Quantizer) -> float:
    """Signal to quantization noise of the converted graph, in decibels, on inputs that calibration did not see."""
    batches = batches_like(inputs)
    with torch.no_grad():
        prepared = prepare_pt2e(torch.export.export(model, inputs).module(), quantizer)
        for batch in batches.calibration:
            prepared(*batch)
        converted = convert_pt2e(prepared)
        expected, found = (torch.cat([graph(*batch) for batch in batches.held_out]) for graph in (model, converted))
    return models.signal_to_noise(expected, found)
