"""The check for entries of a configuration that match something but change nothing."""

from collections import Counter
from collections.abc import Iterator, Sequence

from coreml_quantizer.config.policy import QuantizationPolicy, Scopes
from coreml_quantizer.placement.boundaries import AS_CONFIGURED
from coreml_quantizer.placement.decisions import Decision
from coreml_quantizer.rules import Treatment, rules
from coreml_quantizer.specs import OpSpec

_NEVER_QUANTIZED = frozenset({Treatment.FLOAT, Treatment.BATCH_NORM})
_SHOWN_REASONS = 2
_NO_ACTIVATIONS = "the configuration quantizes no activations"


def without_effect(policy: QuantizationPolicy, decisions: Sequence[Decision]) -> Iterator[str]:
    """Yields a message, with the reason, for every entry of `policy` that changes nothing in a graph."""
    governed: dict[str | None, list[Decision]] = {}
    for decision in decisions:
        governed.setdefault(decision.entry, []).append(decision)
    float_ops = {str(rule.op) for rule in rules if rule.treatment in _NEVER_QUANTIZED}
    weighted_ops = {str(rule.op) for rule in rules if rule.weight is not None}
    for entry, spec in _entries(policy):
        found = governed.get(entry, [])
        has_weights = any(decision.rule in weighted_ops for decision in found)
        keeps_float = spec is None or not (has_weights or spec.quantizes_activations)
        problem = _problem(found, keeps_float, float_ops)
        if problem is not None:
            yield f"'{entry}' changes nothing: {problem}."
    for field, problem in _idle_fields(policy, decisions):
        yield f"'{field}' changes nothing: {problem}."


def _idle_fields(policy: QuantizationPolicy, decisions: Sequence[Decision]) -> Iterator[tuple[str, str]]:
    """Yields every field without effect, with the reason.

    The fields are those for the first and last layer, inputs, outputs and known ranges.
    """
    specs = [policy.default, *(spec for _, spec in _entries(policy))]
    float_activations = not any(spec is not None and spec.quantizes_activations for spec in specs)
    reached = {decision.entry for decision in decisions}
    for end, wanted in (("first_layer", policy.first_layer), ("last_layer", policy.last_layer)):
        if wanted != AS_CONFIGURED and end not in reached:
            yield end, "the configuration quantizes no such layer"
        elif wanted == "weight_only" and float_activations:
            yield end, _NO_ACTIVATIONS
    for side, quantizes in (("inputs", policy.quantizes_inputs), ("outputs", policy.quantizes_outputs)):
        if not quantizes and float_activations:
            yield side, _NO_ACTIVATIONS
    # A LinearQuantizerConfig has no such field, and means fixed ranges always.
    asked = policy.fixes_known_ranges and policy.fields == QuantizationPolicy.fields
    if asked and not any(decision.outcome == "fixed" for decision in decisions):
        yield "known_ranges", _NO_ACTIVATIONS if float_activations else "nothing that has a known range is quantized"


def _entries(policy: QuantizationPolicy) -> Iterator[tuple[str, OpSpec | None]]:
    for prefix, scopes in (("", policy.scopes), ("skip ", policy.skip)):
        yield from _scope_entries(prefix, scopes)


def _scope_entries(prefix: str, scopes: Scopes) -> Iterator[tuple[str, OpSpec | None]]:
    kinds = {
        "module_name": scopes.by_name,
        "pattern": scopes.by_pattern,
        "module_type": scopes.by_type,
        "op": scopes.by_op,
    }
    for kind, entries in kinds.items():
        for key, spec in entries.items():
            yield f"{prefix}{kind} {key}", spec


def _problem(governed: list[Decision], keeps_float: bool, float_ops: set[str]) -> str | None:
    if not governed:
        return "what it matches has no operator that can be quantized, or other entries decide about all of it"
    if keeps_float:
        always_float = all(decision.rule in float_ops for decision in governed)
        return "what it matches stays in floating point anyway" if always_float else None
    if any(decision.outcome != "float" for decision in governed):
        return None
    reasons = Counter(decision.reason for decision in governed).most_common(_SHOWN_REASONS)
    return "all it matches stays in floating point, because " + "; ".join(reason for reason, _ in reasons)
