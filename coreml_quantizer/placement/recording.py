"""The record of what the annotator did: one decision for each operator call."""

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch.fx import GraphModule, Node

from coreml_quantizer.graph.nodes import module_stack, op_name
from coreml_quantizer.placement.decisions import Decision, Outcome
from coreml_quantizer.placement.places import Places
from coreml_quantizer.placement.scope import Governing
from coreml_quantizer.rules import OpRule, Treatment
from coreml_quantizer.specs import FixedSpec

_SHARING = frozenset({Treatment.SHARED, Treatment.CONCATENATED, Treatment.SPLIT})
_PREPARED_ELSEWHERE = frozenset({torch.ops.higher_order.scan, torch.ops.higher_order.while_loop})
"""Control flow operators whose bodies torchao prepares one by one, with one call of the quantizer for each."""


@dataclass
class Ledger:
    """The facts that the annotator learned about each operator call.

    Attributes:
        rules: The rule of its operator.
        entries: The entry of the configuration that governs it.
        reasons: Why it stays in floating point.
        fused: The operator that it is fused into.
        notes: What is unusual about its quantization.
    """

    rules: dict[Node, OpRule] = field(default_factory=dict)
    entries: dict[Node, Governing] = field(default_factory=dict)
    reasons: dict[Node, str] = field(default_factory=dict)
    fused: dict[Node, Node] = field(default_factory=dict)
    notes: dict[Node, str] = field(default_factory=dict)


def record(nodes: Iterable[Node], ledger: Ledger, placed: Places) -> Iterator[Decision]:
    """Yields the decision about every operator call among `nodes`, in the order of `nodes`."""
    weights: dict[Node, list[Node]] = {}
    for constant, consumer in placed.weights:
        weights.setdefault(consumer, []).append(constant)
    for node in nodes:
        if node.op == "call_function":
            yield _decision(node, ledger, placed, weights.get(node, []))


def record_nested(graph_module: GraphModule) -> Iterator[tuple[GraphModule, list[Decision]]]:
    """Yields the nested graphs of control flow that are not prepared, with a decision about each of their calls."""
    for node in graph_module.graph.nodes:
        nested = getattr(graph_module, str(node.target), None) if node.op == "get_attr" else None
        users = [user.target for user in node.users]
        if not isinstance(nested, GraphModule) or _PREPARED_ELSEWHERE.intersection(users):
            continue
        reason = f"it is inside {', '.join(map(str, users))}, whose graphs PT2E quantization does not enter"
        calls = [inner for inner in nested.graph.nodes if inner.op == "call_function"]
        yield nested, [_float(inner, reason) for inner in calls]
        yield from record_nested(nested)


def _decision(node: Node, ledger: Ledger, placed: Places, weights: list[Node]) -> Decision:
    rule = ledger.rules.get(node)
    governing = ledger.entries.get(node)
    outcome = _outcome(node, rule, placed, fused=node in ledger.fused)
    reads = [source for source in placed.inputs.get(node, {}) if source not in weights]
    return Decision(
        node=node.name,
        op=_called(node),
        module=_module(node),
        outcome=outcome,
        rule="" if rule is None else str(rule.op),
        entry=None if governing is None else governing.entry,
        reason=_reason(node, rule, ledger),
        weights=tuple(name for constant in weights for name in _tensor_names(constant)),
        activations=outcome != "float" and (bool(reads) or node in placed.outputs or not weights),
    )


def _reason(node: Node, rule: OpRule | None, ledger: Ledger) -> str:
    if node in ledger.fused:
        return f"it is fused into {ledger.fused[node].name}"
    if node in ledger.notes:
        return ledger.notes[node]
    return ledger.reasons.get(node) or ("" if rule is None else rule.reason)


def _outcome(node: Node, rule: OpRule | None, placed: Places, fused: bool) -> Outcome:
    shares = rule is not None and rule.treatment in _SHARING
    if node in placed.outputs:
        if isinstance(placed.groups.spec(node), FixedSpec):
            return "shared" if shares else "fixed"
        # A cat whose inputs cannot share has parameters of its own on its output.
        own = placed.groups.first(node) == node
        return "shared" if shares and not own else "quantized"
    if shares and node in placed.groups:
        return "shared"
    return "quantized" if node in placed.inputs or fused else "float"


def _float(node: Node, reason: str) -> Decision:
    return Decision(node.name, _called(node), _module(node), "float", "", None, reason)


def _called(node: Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return op_name(node)
    name = getattr(node.target, "__name__", str(node.target))
    return f"operator.{name}" if getattr(operator, name, None) is node.target else name


def _module(node: Node) -> str:
    stack = module_stack(node)
    return stack[-1][0] if stack else ""


def _tensor_names(constant: Node) -> list[str]:
    """Returns the names of the parameters and buffers that a constant is computed from."""
    if constant.op == "get_attr":
        return [str(constant.target)]
    names = [name for source in constant.all_input_nodes for name in _tensor_names(source)]
    return list(dict.fromkeys(names))
