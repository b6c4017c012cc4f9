"""The quantizers of one graph: the place and the spec of each, and which places share one."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch.fx import Node
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpecBase, SharedQuantizationSpec
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from coreml_quantizer.placement.sharing import Place, SharingGroups
from coreml_quantizer.placement.torchao_specs import to_torchao
from coreml_quantizer.rules import OutputRange
from coreml_quantizer.specs import FixedSpec, TensorSpec


@dataclass
class Annotation(QuantizationAnnotation):
    """torchao's annotation of a node, recognizable as ours.

    Attributes:
        output_spec: The spec of the output, where it is quantized.
    """

    output_spec: TensorSpec | FixedSpec | None = None


@dataclass
class Places:
    """The quantizers that the annotator has placed so far.

    Attributes:
        groups: Which places share quantization parameters.
        ranges: What is known about the range of a node's output before anything is observed.
        inputs: For each consumer, its quantized edges by producer.
        outputs: Nodes whose output is quantized.
        weights: Edges (constant, consumer) on which a constant is quantized as a weight.
        sources: Places whose values are new to their sharing group; the other places only copy or average values.
    """

    groups: SharingGroups
    ranges: dict[Node, OutputRange | FixedSpec] = field(default_factory=dict)
    inputs: dict[Node, dict[Node, Place]] = field(default_factory=dict)
    outputs: set[Node] = field(default_factory=set)
    weights: list[tuple[Node, Node]] = field(default_factory=list)
    sources: set[Place] = field(default_factory=set)
    _float_edges: dict[tuple[Node, TensorSpec | FixedSpec], Place] = field(default_factory=dict)

    def __contains__(self, node: Node) -> bool:
        """Returns whether the output of `node` is quantized, or is a list of quantized parts."""
        return node in self.groups

    def quantize_weight(self, constant: Node, node: Node, spec: TensorSpec) -> None:
        """Quantizes a constant that `node` reads as its weight; a constant has one quantizer for each distinct spec."""
        edge = (constant, node)
        self._on_edge(constant, node, spec)
        self.weights.append(edge)

    def quantize_edge(self, source: Node, node: Node, spec: TensorSpec) -> None:
        """Quantizes the value that `node` reads from `source`.

        It has the parameters of `source` if `source` is quantized, and new ones on the edge otherwise.
        """
        if source in self.groups:
            self.share_edge(source, node, source)
            return
        specialized = self.specialize(spec, source)
        if self._on_edge(source, node, specialized):
            self.sources.add((source, node))

    def overrules(self, source: Node, spec: TensorSpec) -> bool:
        """Returns whether the output of `source` has a spec that differs from `spec` in more than the scheme."""
        given = self.groups.spec(source) if source in self.groups else None
        return isinstance(given, TensorSpec) and given.affine() != spec.affine()

    def share_edge(self, source: Node, node: Node, group: Place) -> None:
        """Quantizes the value that `node` reads from `source` with the parameters of `group`."""
        edge = (source, node)
        self.groups.share(edge, group)
        self.inputs.setdefault(node, {})[source] = edge

    def quantize_output(self, node: Node, spec: TensorSpec) -> None:
        """Gives the output of `node` its own parameters."""
        self.groups.define(node, self.specialize(spec, node))
        self.sources.add(node)
        self.outputs.add(node)

    def share_output(self, node: Node, group: Place, quantizes: bool = True) -> None:
        """Gives the output of `node` the parameters of `group`.

        With `quantizes` False, nothing is quantized here: a list of tensors only passes the parameters on.
        """
        self.groups.share(node, group)
        if quantizes:
            self.outputs.add(node)

    def adopt(self, node: Node, annotation: object) -> None:
        """Notes that an annotation from before quantizes the output of `node`, if it is ours."""
        if isinstance(annotation, Annotation) and annotation.output_spec is not None:
            self.groups.adopt(node, annotation.output_spec)

    def specialize(self, spec: TensorSpec, node: Node) -> TensorSpec | FixedSpec:
        """Returns `spec` as adapted to what is known about the output of `node`.

        A fixed range replaces it. Non-negative values take the affine scheme, so that half of the range is not lost.
        """
        known = self.ranges.get(node, OutputRange.ANY)
        if isinstance(known, FixedSpec):
            return known
        return spec.affine() if known is OutputRange.NON_NEGATIVE else spec

    def spec(self, source: Node, node: Node) -> TensorSpec | FixedSpec:
        """Returns the spec under which `node` reads `source`."""
        return self.groups.spec(self.inputs[node][source])

    def annotate(self, nodes: Sequence[Node]) -> None:
        """Writes torchao annotations on `nodes`; sharing is explicit, so that torchao infers none."""
        for node in nodes:
            if node in self.inputs or node in self.outputs:
                node.meta[Q_ANNOTATION_KEY] = Annotation(
                    input_qspec_map={
                        source: self._torchao_spec(place) for source, place in self.inputs.get(node, {}).items()
                    },
                    output_qspec=self._torchao_spec(node) if node in self.outputs else None,
                    allow_implicit_sharing=False,
                    _annotated=True,
                    output_spec=self.groups.spec(node) if node in self.outputs else None,
                )

    def _on_edge(self, source: Node, node: Node, spec: TensorSpec | FixedSpec) -> bool:
        """Quantizes, on the edge to `node`, a `source` whose output is float; returns whether the quantizer is new."""
        edge = (source, node)
        first = self._float_edges.setdefault((source, spec), edge)
        if first == edge:
            self.groups.define(edge, spec)
        else:
            self.groups.share(edge, first)
        self.inputs.setdefault(node, {})[source] = edge
        return first == edge

    def _torchao_spec(self, place: Place) -> QuantizationSpecBase:
        first = self.groups.first(place)
        return to_torchao(self.groups.spec(place)) if first == place else SharedQuantizationSpec(first)
