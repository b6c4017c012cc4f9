"""The single pass over a graph that decides what is quantized, and writes it down as torchao annotations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpecBase, SharedQuantizationSpec
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from coreml_quantizer.config.policy import QuantizationPolicy
from coreml_quantizer.masks import MaskFinder
from coreml_quantizer.rules import OpRule, OutputRange, RuleTable, Treatment
from coreml_quantizer.scope import ScopeResolver
from coreml_quantizer.sensitive import Sensitivity
from coreml_quantizer.sharing import Place, SharingGroups
from coreml_quantizer.specs import FixedSpec, OpSpec, Scheme, TensorSpec
from coreml_quantizer.torchao_specs import to_torchao
from coreml_quantizer.values import find_constants, find_written_values, is_float

_FUSIONS = {True: (Treatment.BATCH_NORM, Treatment.ACTIVATION), False: (Treatment.ACTIVATION,)}
"""What fuses behind an operator with a weight, and behind one without."""


@dataclass(frozen=True)
class Placement:
    """What was decided for one graph.

    Attributes:
        weights: Edges that carry a constant with a weight spec, as (constant, consumer).
        sources: Places where values arise that the other places of their group do not hold.
    """

    weights: tuple[tuple[Node, Node], ...]
    sources: frozenset[Place]


def annotate(graph_module: GraphModule, policy: QuantizationPolicy, rules: RuleTable) -> Placement:
    """Annotates the nodes of an exported graph in one pass, in time linear in their number.

    Raises:
        ScopeError: The policy names modules, types or operators that the graph does not have.
    """
    return _Annotator(graph_module, policy, rules).run()


class _Annotator:
    """State of one pass."""

    def __init__(self, graph_module: GraphModule, policy: QuantizationPolicy, rules: RuleTable) -> None:
        self._nodes = list(graph_module.graph.nodes)
        self._scope = ScopeResolver(policy, graph_module)
        self._rules = rules
        self._masks = MaskFinder(graph_module)
        self._groups = SharingGroups({node: index for index, node in enumerate(self._nodes)})
        self._inputs: dict[Node, dict[Node, Place]] = {}
        self._outputs: dict[Node, Node] = {}
        self._weights: list[tuple[Node, Node]] = []
        self._sources: set[Place] = set()
        self._written = find_written_values(self._nodes)
        self._constants = find_constants(self._nodes, self._written)
        self._sensitivity = Sensitivity()
        self._float_edges: dict[Node, Place] = {}
        self._ranges: dict[Node, OutputRange | FixedSpec] = {}
        self._fused: set[Node] = set()

    def run(self) -> Placement:
        for node in self._nodes:
            self._masks.visit(node)
            if node.op != "call_function" or node in self._constants or node in self._written:
                continue
            rule = self._rules.lookup(node)
            if rule is not None and (is_float(node) or rule.treatment is Treatment.SPLIT):
                self._note_range(node, rule)
                if node not in self._fused:
                    _HANDLERS[rule.treatment](self, node, rule)
        return self._write()

    # What is known of values before anything is quantized.

    def _note_range(self, node: Node, rule: OpRule) -> None:
        known = rule.range_of(node)
        if rule.treatment is Treatment.SHARED:
            known = self._ranges.get(node.all_input_nodes[0], known)
        if known is not OutputRange.ANY:
            self._ranges[node] = known

    # One handler a treatment.

    def quantized(self, node: Node, rule: OpRule) -> None:
        spec = self._scope.resolve(node)
        if spec is None or self._is_masking(node, rule.inputs) or (rule.combines and self._sensitivity.feeds(node)):
            return
        weights = self._weight_positions(node, rule)
        sources = self._activation_sources(node, rule, weights)
        for position, axis in weights.items():
            self._quantize_weight(node, position, axis, spec)
        if spec.input is not None:
            for source in sources:
                self._quantize_edge(source, node, spec.input)
        if spec.output is not None and (sources or weights):
            tail = self._fuse(node, rule, spec)
            schemes = {_scheme(self._groups.spec(self._inputs[node][s])) for s in sources} if spec.input else set()
            self._quantize_output(tail, spec.output, keeps_affine=rule.combines and schemes == {Scheme.AFFINE})

    def activation(self, node: Node, rule: OpRule) -> None:
        source = _input(node, 0)
        spec = self._scope.resolve(node)
        if source is None or spec is None or spec.output is None or source not in self._groups:
            return
        self._share_edge(source, node)
        self._quantize_output(node, spec.output)

    def shared(self, node: Node, rule: OpRule) -> None:
        source = _input(node, 0)
        spec = self._scope.resolve(node)
        if source is None or source not in self._groups or spec is None or spec.output is None:
            return
        if is_float(source):
            self._share_edge(source, node)
        self._groups.share(node, source)
        if is_float(node):
            self._outputs[node] = node

    def concatenated(self, node: Node, rule: OpRule) -> None:
        spec = self._scope.resolve(node)
        sources = [source for source in node.all_input_nodes if is_float(source)]
        carried = [source for source in sources if source in self._groups]
        if spec is None or spec.input is None or not carried or self._is_masking(node, None):
            return
        fixed = isinstance(self._groups.spec(carried[0]), FixedSpec)
        if not self._groups.mergeable(list(carried)) or (fixed and len(carried) < len(sources)):
            for source in carried:
                self._share_edge(source, node)
            self._quantize_output(node, spec.input)
            return
        self._groups.merge(list(carried))
        for source in sources:
            self._share_edge(source, node, group=carried[0])
            if source not in carried:
                self._sources.add((source, node))
        self._groups.share(node, carried[0])
        self._outputs[node] = node

    def left_alone(self, node: Node, rule: OpRule) -> None:
        """Batch norm that nothing absorbed, and operators that are float on purpose."""

    # Steps the handlers share.

    def _is_masking(self, node: Node, positions: tuple[int, ...] | None) -> bool:
        """Masks never set a range: whether `node`, or an operand that would be quantized with it, holds one."""
        operands = node.all_input_nodes if positions is None else [_input(node, position) for position in positions]
        return node in self._masks or any(operand in self._masks for operand in operands if operand is not None)

    def _weight_positions(self, node: Node, rule: OpRule) -> dict[int, int]:
        """Maps the positions of constant operands that are weights to their channel axes."""
        found = {}
        if rule.weight is not None and _input(node, rule.weight.position) in self._constants:
            found[rule.weight.position] = rule.weight.channel_axis
        for position, summed in rule.contracts:
            operand = _input(node, position)
            if operand is not None and operand in self._constants and operand.meta["val"].ndim > 1:
                other = -1 if summed == -2 else -2
                found[position] = operand.meta["val"].ndim + other
        return found

    def _activation_sources(self, node: Node, rule: OpRule, weights: Mapping[int, int]) -> list[Node]:
        positions = [*rule.inputs, *([rule.weight.position] if rule.weight else [])]
        operands = (_input(node, position) for position in positions if position not in weights)
        return [
            operand
            for operand in dict.fromkeys(operands)
            if operand is not None
            and operand not in self._constants
            and operand not in self._written
            and is_float(operand)
        ]

    def _quantize_weight(self, node: Node, position: int, axis: int, spec: OpSpec) -> None:
        constant = _input(node, position)
        if spec.weight is None or constant is None or not is_float(constant):
            return
        edge = (constant, node)
        wanted = spec.weight.along(axis)
        first = self._float_edges.get(constant)
        if first is not None and self._groups.spec(first) == wanted:
            self._groups.share(edge, first)
        else:
            self._groups.define(edge, wanted)
            self._float_edges.setdefault(constant, edge)
        self._inputs.setdefault(node, {})[constant] = edge
        self._weights.append(edge)

    def _quantize_edge(self, source: Node, node: Node, spec: TensorSpec) -> None:
        """Quantizes what `node` reads from `source`: with the parameters `source` has, or new ones on the edge."""
        if source in self._groups:
            self._share_edge(source, node)
            return
        first = self._float_edges.get(source)
        if first is not None:
            self._share_edge(source, node, group=first)
            return
        edge = (source, node)
        self._define(edge, _specialize(spec, self._ranges.get(source, OutputRange.ANY)))
        self._float_edges[source] = edge
        self._inputs.setdefault(node, {})[source] = edge

    def _share_edge(self, source: Node, node: Node, group: Place | None = None) -> None:
        edge = (source, node)
        self._groups.share(edge, source if group is None else group)
        self._inputs.setdefault(node, {})[source] = edge

    def _quantize_output(self, node: Node, spec: TensorSpec, keeps_affine: bool = False) -> None:
        wanted = spec.affine() if keeps_affine else spec
        if node in self._written:
            return
        self._define(node, _specialize(wanted, self._ranges.get(node, OutputRange.ANY)))
        self._outputs[node] = node

    def _define(self, place: Place, spec: TensorSpec | FixedSpec) -> None:
        self._groups.define(place, spec)
        self._sources.add(place)

    def _fuse(self, node: Node, rule: OpRule, spec: OpSpec) -> Node:
        """Follows batch norm and one activation behind `node` and returns the last node of the fusion."""
        tail = node
        for treatment in _FUSIONS[rule.weight is not None]:
            follower = self._only_user(tail)
            behind = self._rules.lookup(follower) if follower is not None else None
            if follower is None or behind is None or behind.treatment is not treatment:
                continue
            if _input(follower, 0) is tail and is_float(follower) and self._scope.resolve(follower) == spec:
                self._note_range(follower, behind)
                self._fused.add(follower)
                tail = follower
        return tail

    def _only_user(self, node: Node) -> Node | None:
        users = list(node.users)
        return users[0] if len(users) == 1 and users[0].op == "call_function" else None

    # Emission.

    def _write(self) -> Placement:
        annotated = [node for node in self._nodes if node in self._inputs or node in self._outputs]
        for node in annotated:
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                input_qspec_map={
                    source: self._torchao_spec(place) for source, place in self._inputs.get(node, {}).items()
                },
                output_qspec=self._torchao_spec(node) if node in self._outputs else None,
                allow_implicit_sharing=False,
                _annotated=True,
            )
        return Placement(tuple(self._weights), frozenset(self._sources))

    def _torchao_spec(self, place: Place) -> QuantizationSpecBase:
        first = self._groups.first(place)
        return to_torchao(self._groups.spec(place)) if first == place else SharedQuantizationSpec(first)


_HANDLERS: Mapping[Treatment, Callable[[_Annotator, Node, OpRule], None]] = MappingProxyType(
    {
        Treatment.QUANTIZED: _Annotator.quantized,
        Treatment.ACTIVATION: _Annotator.activation,
        Treatment.SHARED: _Annotator.shared,
        Treatment.SPLIT: _Annotator.shared,
        Treatment.CONCATENATED: _Annotator.concatenated,
        Treatment.BATCH_NORM: _Annotator.left_alone,
        Treatment.FLOAT: _Annotator.left_alone,
    }
)


def _input(node: Node, position: int) -> Node | None:
    operand = node.args[position] if len(node.args) > position else None
    return operand if isinstance(operand, Node) else None


def _scheme(spec: TensorSpec | FixedSpec) -> Scheme:
    """A fixed range that starts at zero is affine, as an observed non-negative one is."""
    if isinstance(spec, TensorSpec):
        return spec.scheme
    return Scheme.AFFINE if spec.zero_point == 0 else Scheme.SYMMETRIC


def _specialize(spec: TensorSpec, known: OutputRange | FixedSpec) -> TensorSpec | FixedSpec:
    """Non-negative values take the affine scheme, so that no half of the range is wasted; fixed ranges are fixed."""
    if isinstance(known, FixedSpec):
        return known
    return spec.affine() if known is OutputRange.NON_NEGATIVE else spec
