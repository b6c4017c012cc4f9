"""The annotator: one pass over a graph that decides what is quantized and writes torchao annotations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from coreml_quantizer.config.policy import QuantizationPolicy
from coreml_quantizer.graph.aliases import resolve_aliases
from coreml_quantizer.graph.values import constant_of, find_constants, find_written_values, is_float
from coreml_quantizer.placement.decisions import keep_decisions, name_entries
from coreml_quantizer.placement.foreign_types import warn_of_foreign_types
from coreml_quantizer.placement.fusion import Fusions
from coreml_quantizer.placement.kept_float.fragile_values import NEAR_POLE, FragileReaders, find_near_poles
from coreml_quantizer.placement.kept_float.masks import MaskFinder
from coreml_quantizer.placement.kept_float.positions import POSITION, find_positions
from coreml_quantizer.placement.operands import activations, operand, weight_axes
from coreml_quantizer.placement.places import Places
from coreml_quantizer.placement.recording import Ledger, record, record_nested
from coreml_quantizer.placement.scope import ScopeResolver
from coreml_quantizer.placement.sharing import Place, SharingGroups
from coreml_quantizer.rules import OpRule, OutputRange, RuleTable, Treatment
from coreml_quantizer.rules.registry import Position
from coreml_quantizer.specs import FixedSpec, OpSpec, Scheme, TensorSpec


@dataclass(frozen=True)
class Placement:
    """The decisions about one graph that inserting observers needs.

    Attributes:
        weights: Edges (constant, consumer) on which a constant is quantized as a weight.
        sources: Places whose values are new to their sharing group; the other places only copy or average values.
    """

    weights: tuple[tuple[Node, Node], ...]
    sources: frozenset[Place]


def annotate(graph_module: GraphModule, policy: QuantizationPolicy, rules: RuleTable) -> Placement:
    """Annotates the nodes of an exported graph in one pass, in time linear in their number.

    An operator with several names is first renamed to the name that the rules use.

    The decision about each operator call, with its reason, is kept with the graph: see `decisions.decisions_of`.

    Raises:
        ScopeError: The policy names modules, types or operators that the graph does not have.
    """
    resolve_aliases(graph_module)
    return _Annotator(graph_module, policy, rules).run(graph_module)


class _Annotator:
    """The state of one pass."""

    def __init__(self, graph_module: GraphModule, policy: QuantizationPolicy, rules: RuleTable) -> None:
        self._graph_module = graph_module
        self._nodes = list(graph_module.graph.nodes)
        self._scope = ScopeResolver(policy, graph_module, rules)
        self._rules = rules
        self._fixes_known_ranges = policy.fixes_known_ranges
        self._masks = MaskFinder(graph_module, rules)
        for node in self._nodes:
            self._masks.visit(node)
        self._written = find_written_values(self._nodes)
        self._constants = find_constants(self._nodes, self._written)
        self._no_activations = self._constants | self._written
        self._fragile_readers = FragileReaders(rules)
        self._exact = {
            **dict.fromkeys(find_positions(self._nodes, self._moves, self._constant), POSITION),
            **dict.fromkeys(find_near_poles(self._nodes, self._moves), NEAR_POLE),
        }
        self._places = Places(SharingGroups({node: index for index, node in enumerate(self._nodes)}))
        self._annotated = frozenset(node for node in self._nodes if Q_ANNOTATION_KEY in node.meta)
        for node in self._annotated:
            self._places.adopt(node, node.meta[Q_ANNOTATION_KEY])
        self._fusions = Fusions(rules, self._constants, self._scope)
        self._ledger = Ledger()

    def run(self, graph_module: GraphModule) -> Placement:
        for node in self._nodes:
            if node.op == "call_function":
                reason = self._decide(node)
                if reason is not None:
                    self._ledger.reasons[node] = reason
        self._places.annotate(self._nodes)
        recorded = list(record(self._nodes, self._ledger, self._places))
        keep_decisions(graph_module, recorded)
        name_entries((node for node in self._nodes if node.op == "call_function"), recorded)
        for nested, decisions in record_nested(graph_module):
            keep_decisions(nested, decisions)
        warn_of_foreign_types(self._nodes, self._rules)
        return Placement(tuple(self._places.weights), frozenset(self._places.sources))

    def _decide(self, node: Node) -> str | None:
        """Quantizes `node`, or returns why it stays in floating point."""
        if node in self._annotated:
            return "another quantizer has annotated it"
        rule = self._rules.row(node)
        if rule is None:
            return "it is made of constants only" if node in self._constants else "no rule names this operator"
        self._ledger.rules[node] = rule
        reason = self._why_never(node, rule)
        if reason is not None:
            return reason
        self._note_range(node, rule)
        self._ledger.entries[node] = governing = self._scope.govern(node)
        if node in self._fusions:
            self._ledger.fused[node] = self._fusions.head(node)
            return None
        if governing.spec is None:
            return f"the configuration leaves it in floating point ({governing.entry})"
        return _HANDLERS[rule.treatment](self, node, rule, governing.spec)

    def _why_never(self, node: Node, rule: OpRule) -> str | None:
        """Returns why `node` stays in floating point under every configuration, None when it can be quantized."""
        if node in self._constants:
            return "it is made of constants only"
        if node in self._written:
            return _WRITTEN
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and not is_float(node):
            return f"its output is {_dtype_name(value)}; only float32, float16 and bfloat16 are quantized"
        return None if rule.applies(node) else rule.otherwise

    def _note_range(self, node: Node, rule: OpRule) -> None:
        ranges = self._places.ranges
        known = rule.range_of(node, self._fixes_known_ranges)
        if rule.treatment is Treatment.SHARED:
            known = ranges.get(node.all_input_nodes[0], known)
        if known is not OutputRange.ANY:
            ranges[node] = known

    # One handler a treatment. Each returns why nothing was quantized, None when something was.

    def quantized(self, node: Node, rule: OpRule, spec: OpSpec) -> str | None:
        weights = weight_axes(node, rule, self._constants)
        sources = activations(node, rule, weights, self._no_activations)
        reason = self._why_not_here(node, rule, sources, weights)
        if reason is not None:
            return reason
        if spec.weight is not None:
            for position, axis in weights.items():
                constant = operand(node, position)
                if constant is not None and is_float(constant):
                    self._places.quantize_weight(constant, node, spec.weight.along(axis))
        if spec.input is not None:
            overruled = [source for source in sources if self._places.overrules(source, spec.input)]
            if overruled:
                names = ", ".join(source.name for source in overruled)
                self._ledger.notes[node] = (
                    f"it reads {names} with the parameters of the producer, whose settings differ"
                )
            for source in sources:
                self._places.quantize_edge(source, node, spec.input)
        if spec.output is not None and (sources or weights) and not rule.weights_only:
            self._quantize_output(node, rule, spec, sources)
            return None
        if node in self._places.inputs:
            return None
        written = any(source in self._written for source in node.all_input_nodes)
        return _READS_WRITTEN if written and not sources else _NOTHING_ASKED

    def _quantize_output(self, node: Node, rule: OpRule, spec: OpSpec, sources: list[Node]) -> None:
        if rule.combines and self._fragile_readers.include_norm(node):
            self._ledger.notes[node] = "its operands are quantized; what it makes stays float, because a norm reads it"
            return
        if node in self._exact:
            self._ledger.notes[node] = f"its operands are quantized; what it makes stays float: {self._exact[node]}"
            return
        tail = self._fusions.follow(node, rule, spec, self._stops)
        behind = self._rules.lookup(tail)
        if tail is not node and behind is not None:
            self._note_range(tail, behind)
        schemes = {_scheme(self._places.spec(source, node)) for source in sources} if spec.input else set()
        keeps_affine = rule.combines and schemes == {Scheme.AFFINE}
        if spec.output is not None and tail not in self._written:
            self._places.quantize_output(tail, spec.output.affine() if keeps_affine else spec.output)

    def _why_not_here(
        self, node: Node, rule: OpRule, sources: list[Node], weights: Mapping[Position, int]
    ) -> str | None:
        if self._is_masking(node, rule):
            return "one of its operands holds masking values, which must never set a range"
        if node in self._exact and (rule.combines or not weights):
            return self._exact[node]
        if not rule.combines:
            return None
        if self._fragile_readers.read_all_of(node):
            return "all that is made of it goes into a function that eight bits would ruin"
        if not any(source in self._places for source in sources):
            return "none of its operands is quantized, so eight bits would cost accuracy and save nothing"
        return None

    def activation(self, node: Node, rule: OpRule, spec: OpSpec) -> str | None:
        source = operand(node, 0)
        if source is None or spec.output is None or source not in self._places:
            return _INPUT_IS_FLOAT
        if node in self._exact:
            return self._exact[node]
        self._places.share_edge(source, node, source)
        self._places.quantize_output(node, spec.output)
        return None

    def shared(self, node: Node, rule: OpRule, spec: OpSpec) -> str | None:
        source = operand(node, 0)
        if source is None or spec.output is None or source not in self._places:
            return _INPUT_IS_FLOAT
        if is_float(source):
            self._places.share_edge(source, node, source)
        self._places.share_output(node, source, quantizes=is_float(node))
        return None

    def concatenated(self, node: Node, rule: OpRule, spec: OpSpec) -> str | None:
        sources = [source for source in node.all_input_nodes if is_float(source)]
        carried = [source for source in sources if source in self._places]
        if any(operand in self._masks for operand in (node, *node.all_input_nodes)):
            return "one of its operands holds masking values, which must never set a range"
        if spec.input is None or not carried:
            return "none of its inputs is quantized"
        groups = self._places.groups
        fixed = isinstance(groups.spec(carried[0]), FixedSpec)
        if not groups.mergeable(list(carried)) or (fixed and len(carried) < len(sources)):
            for source in carried:
                self._places.share_edge(source, node, source)
            self._places.quantize_output(node, spec.input)
            return None
        groups.merge(list(carried))
        for source in sources:
            self._places.share_edge(source, node, carried[0])
            if source not in carried:
                self._places.sources.add((source, node))
        self._places.share_output(node, carried[0])
        return None

    def left_alone(self, node: Node, rule: OpRule, spec: OpSpec) -> str | None:
        """Returns why `node` stays in floating point.

        It is a batch norm that no layer absorbed, or an operator that is float on purpose.
        """
        return rule.reason

    def _is_masking(self, node: Node, rule: OpRule) -> bool:
        """Returns whether `node`, or an operand that would be quantized with it, holds masking values.

        Masking values must never set a range.
        """
        operands = (operand(node, position) for position in rule.inputs_of(node))
        return node in self._masks or any(found in self._masks for found in operands if found is not None)

    def _constant(self, node: Node) -> torch.Tensor | None:
        return constant_of(self._graph_module, node) if node in self._constants else None

    def _moves(self, node: Node) -> bool:
        rule = self._rules.lookup(node)
        return rule is not None and rule.treatment in _MOVING

    def _stops(self, node: Node) -> bool:
        kept_float = node in self._masks or node in self._written or node in self._exact or node in self._annotated
        return kept_float or any(s in self._masks for s in node.all_input_nodes)


_MOVING = frozenset({Treatment.SHARED, Treatment.SPLIT, Treatment.CONCATENATED})
_NOTHING_ASKED = "the configuration quantizes nothing that it reads or writes"
_MISSED = "written in place, and quantized values are read through copies, which would miss that"
_WRITTEN, _READS_WRITTEN = f"its value is {_MISSED}", f"what it reads is {_MISSED}"
_INPUT_IS_FLOAT = "its input is in floating point"

_HANDLERS: Mapping[Treatment, Callable[[_Annotator, Node, OpRule, OpSpec], str | None]] = MappingProxyType(
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


def _dtype_name(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _scheme(spec: TensorSpec | FixedSpec) -> Scheme:
    """Returns the scheme of a spec; a fixed range that starts at zero is affine, as an observed one is."""
    if isinstance(spec, TensorSpec):
        return spec.scheme
    return Scheme.AFFINE if spec.non_negative else Scheme.SYMMETRIC
