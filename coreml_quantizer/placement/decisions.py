"""Decisions about every operator call of a graph: the outcome, the rule, the configuration entry and the reason."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch.fx import GraphModule, Node

from coreml_quantizer.errors import QuantizerError

Outcome = Literal["quantized", "shared", "fixed", "float"]

ENTRY_KEY = "quantization_entry"
"""The key in ``node.meta["custom"]`` that `partitioner` reads."""

_KEY = "coreml_quantizer_decisions"


@dataclass(frozen=True)
class Decision:
    """The decision about one operator call.

    Attributes:
        node: Name of its node in the graph; `"<submodule>.<node>"` inside a branch of control flow.
        op: ATen operator without overload, such as "aten.conv2d".
        module: Path of the innermost module that makes the call; "" is the model itself.
        outcome: "quantized": it reads or writes values that have their own parameters. "shared": its output has the
            parameters of its input. "fixed": its output has parameters known from the operator. "float": nothing
            about it is quantized.
        rule: Operator whose rule decided; "" when no rule did.
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
    """Stores decisions in the metadata of the graph they are about; they survive preparing and converting.

    Where another quantizer has quantized a call of the same graph before, its decision stays.
    """
    new = {decision.node: decision for decision in decisions}
    earlier = {decision.node: decision for decision in graph_module.meta.get(_KEY, ())}
    kept = {node: decision for node, decision in earlier.items() if decision.outcome != "float" or node not in new}
    graph_module.meta[_KEY] = tuple({**earlier, **new, **kept}.values())


def has_decisions(graph_module: GraphModule) -> bool:
    """Returns whether a graph was annotated by this package."""
    return _KEY in graph_module.meta


def forget_decisions(graph_module: GraphModule) -> None:
    """Removes what `keep_decisions` stored in a graph and in the graphs nested in it."""
    for inner in graph_module.modules():
        if isinstance(inner, GraphModule):
            inner.meta.pop(_KEY, None)


def name_entries(nodes: Iterable[Node], decisions: Iterable[Decision]) -> None:
    """Writes the configuration entry that quantizes an operator into the ``custom`` metadata of its node.

    Unlike the decisions, this survives `torch.export.export`. The code that lowers the program can then say which
    entry to change.

    Args:
        nodes: The calls that `decisions` are about, in the same order.
        decisions: One for each node.
    """
    for node, decision in zip(nodes, decisions, strict=True):
        if decision.entry is not None and decision.outcome != "float":
            node.meta["custom"] = {**(node.meta.get("custom") or {}), ENTRY_KEY: decision.entry}


def decisions_of(graph_module: GraphModule) -> tuple[Decision, ...]:
    """Returns the decisions about a prepared or converted graph, one per operator call, in graph order.

    Those about nested graphs (branches of `torch.cond`, bodies of loops) follow, with the graph's path in the name.

    Raises:
        QuantizerError: The graph was not prepared by this package, or was exported again afterwards.
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
