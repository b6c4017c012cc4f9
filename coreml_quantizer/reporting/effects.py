"""Entries of a configuration that match something but change nothing."""

from collections import Counter
from collections.abc import Iterator, Sequence

from coreml_quantizer.boundaries import AS_CONFIGURED
from coreml_quantizer.config.policy import QuantizationPolicy, Scopes
from coreml_quantizer.decisions import Decision
from coreml_quantizer.rules import Treatment, rules
from coreml_quantizer.specs import OpSpec

_NEVER_QUANTIZED = frozenset({Treatment.FLOAT, Treatment.BATCH_NORM})
_SHOWN_REASONS = 2


def without_effect(policy: QuantizationPolicy, decisions: Sequence[Decision]) -> Iterator[str]:
    """Yields a message for every entry of `policy` that changes nothing about a graph, and says why."""
    governed: dict[str | None, list[Decision]] = {}
    for decision in decisions:
        governed.setdefault(decision.entry, []).append(decision)
    float_ops = {str(rule.op) for rule in rules if rule.treatment in _NEVER_QUANTIZED}
    for entry, spec in _entries(policy):
        problem = _problem(governed.get(entry, []), spec, float_ops)
        if problem is not None:
            yield f"'{entry}' changes nothing: {problem}."
    for end, wanted in (("first_layer", policy.first_layer), ("last_layer", policy.last_layer)):
        if wanted != AS_CONFIGURED and end not in governed:
            yield f"'{end}' changes nothing: the configuration quantizes no such layer."


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


def _problem(governed: list[Decision], spec: OpSpec | None, float_ops: set[str]) -> str | None:
    if not governed:
        return "what it matches has no operator that can be quantized, or other entries decide about all of it"
    if spec is None:
        always_float = all(decision.rule in float_ops for decision in governed)
        return "what it matches stays in floating point anyway" if always_float else None
    if any(decision.outcome != "float" for decision in governed):
        return None
    reasons = Counter(decision.reason for decision in governed).most_common(_SHOWN_REASONS)
    return "all it matches stays in floating point, because " + "; ".join(reason for reason, _ in reasons)
