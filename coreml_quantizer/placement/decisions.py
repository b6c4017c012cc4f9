"""What was decided about every operator of a graph, by which rule and entry of the configuration, and why."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch.fx import GraphModule, Node

from coreml_quantizer.errors import QuantizerError

Outcome = Literal["quantized", "shared", "fixed", "float"]

ENTRY_KEY = "quantization_entry"
"""Key of ``node.meta["custom"]``, which `partitioner` reads."""

_KEY = "coreml_quantizer_decisions"


@dataclass(frozen=True)
class Decision:
    """What became of one operator call.

    Attributes:
        node: Name of its node in the graph; `"<submodule>.<node>"` inside a branch of control flow.
        op: ATen operator without overload, such as "aten.conv2d".
        module: Path of the innermost module it was made in; "" is the model itself.
        outcome: "quantized": it reads or writes values with parameters of their own. "shared": its output carries the
            parameters of its input. "fixed": its output has parameters known from the operator. "float": nothing
            about it is quantized.
        rule: Operator whose rule decided; "" when it has none.
        entry: Entry of the configuration that governs it, such as "global", "module_type Linear" or
            "module_name encoder.0"; None where the configuration is never asked.
        reason: Why the outcome is this one, a sentence without a full stop.
        weights: Names of the parameters and buffers that are quantized as its weights.
        activations: Whether any activation it reads or writes is quantized; False with weights is weight-only.
    """

    node: str
    op: str
    module: str
    outcome: Outcome
    rule: str
    entry: str | None
    reason: str
    weights: tuple[str, ...] = ()
    activations: bool = False


def keep_decisions(graph_module: GraphModule, decisions: Sequence[Decision]) -> None:
    """Keeps decisions with the graph they are about; preparing and converting carry them along."""
    graph_module.meta[_KEY] = tuple(decisions)


def name_entries(nodes: Iterable[Node], decisions: Iterable[Decision]) -> None:
    """Leaves the entry that asks for an operator's quantization in its node's ``custom`` metadata.

    Unlike the record, that survives `torch.export.export`: whatever lowers the program can say which entry to change.

    Args:
        nodes: The calls that `decisions` are about, in the same order.
        decisions: One for each.
    """
    for node, decision in zip(nodes, decisions, strict=True):
        if decision.entry is not None and decision.outcome != "float":
            node.meta["custom"] = {**(node.meta.get("custom") or {}), ENTRY_KEY: decision.entry}


def decisions_of(graph_module: GraphModule) -> tuple[Decision, ...]:
    """Returns the decisions about a prepared or converted graph, one an operator call, in graph order.

    Graphs inside of it (branches of `torch.cond`, bodies of loops) follow behind, with their path before the name.

    Raises:
        QuantizerError: The graph was not prepared by this package, or was exported again since.
    """
    if _KEY not in graph_module.meta:
        raise QuantizerError(
            "This graph carries no record of what was quantized. Pass what prepare_pt2e returned with a "
            "CoreMLQuantizer; torch.export.export drops the record."
        )
    graphs = [(path, inner) for path, inner in graph_module.named_modules() if isinstance(inner, GraphModule)]
    return tuple(
        replace(decision, node=f"{path}.{decision.node}" if path else decision.node)
        for path, inner in graphs
        for decision in inner.meta.get(_KEY, ())
    )
