"""The summary of a report: how many operators of each module are quantized."""

from collections import Counter
from collections.abc import Iterable

from coreml_quantizer.placement.decisions import Decision

OUTCOMES = ("quantized", "weights only", "shared", "fixed", "float")
_DEPTH = 2
_MODEL = "(the model itself)"


def outcome(decision: Decision) -> str:
    """Returns the outcome of a decision, with "weights only" told apart from "quantized"."""
    weight_only = decision.outcome == "quantized" and decision.weights and not decision.activations
    return "weights only" if weight_only else decision.outcome


def by_module(decisions: Iterable[Decision], depth: int = _DEPTH) -> dict[str, Counter[str]]:
    """Returns how often each outcome occurs in every module, in the order of the graph.

    Args:
        decisions: The decisions about the operators of a model.
        depth: How many names of a module's path count; 2 makes one module of all in "encoder.layer0".
    """
    counts: dict[str, Counter[str]] = {}
    for decision in decisions:
        module = ".".join(decision.module.split(".")[:depth]) or _MODEL
        counts.setdefault(module, Counter())[outcome(decision)] += 1
    return counts


def summary_rows(decisions: Iterable[Decision]) -> list[tuple[str, ...]]:
    """Returns one row for each module: its path, and the count of each of `OUTCOMES`."""
    return [(module, *(str(found[name] or "") for name in OUTCOMES)) for module, found in by_module(decisions).items()]
