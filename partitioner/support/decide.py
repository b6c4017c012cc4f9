"""The decision whether Core ML takes an operation, from its operator, arguments and dtypes.

It starts from Core ML Tools' list of converters. `partitioner.support.checks` has the calls that a listed converter
gets wrong.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from partitioner.graph.nodes import (
    constant_names,
    constant_values,
    is_strided,
    op_name,
    skip_names,
    source_line,
    tensor_of,
)
from partitioner.graph.ranks import rank_refusal
from partitioner.limits import BOUNDARY_DTYPES, INNER_DTYPES
from partitioner.lowerings import has_converter
from partitioner.refusals import Kind, Refusal
from partitioner.support.checks import CONSTANT_OPERANDS, check
from partitioner.support.integers import scalar_refusal, wide_constants
from partitioner.support.sizes import exposed_size


@dataclass(frozen=True)
class Rejection:
    """An operation that stays outside Core ML, and why.

    Attributes:
        op: The operation's full name.
        node: The node's name.
        reason: Why Core ML does not take it.
        source: The line of the model that made it, when known.
        kind: What is in the way.
        remedy: What would change it, when known.
    """

    op: str
    node: str
    reason: str
    source: str | None = None
    kind: Kind = Kind.ARGUMENTS
    remedy: str | None = None

    def __str__(self) -> str:
        place = f" ({self.source})" if self.source else ""
        return f"{self.op} [{self.node}]{place}: {self.reason}"


def refusal(node: Node, skipped: frozenset[str], constants: frozenset[str]) -> Refusal | None:
    """Returns the reason why Core ML does not take a node by itself, or None.

    Args:
        node: A ``call_function`` node of an ATen or edge program.
        skipped: Lower-case names that the user keeps outside Core ML.
        constants: Names of the values that the Core ML model will hold; see `partitioner.graph.nodes.constant_values`.
    """
    if skipped and skip_names(node) & skipped:
        return Refusal(Kind.SKIPPED, "listed in skip_ops_for_coreml_delegation")
    if node.target is operator.getitem:
        return None
    if not callable(node.target) or not has_converter(node.target):
        return Refusal(Kind.NO_CONVERTER, "Core ML Tools has no converter for it")
    return check(node) or _computed_operand(node, constants) or _dtype_refusal(node) or scalar_refusal(node)


def _computed_operand(node: Node, constants: frozenset[str]) -> Refusal | None:
    operands = [
        node.args[position] for position in CONSTANT_OPERANDS.get(op_name(node), ()) if position < len(node.args)
    ]
    computed = [operand.name for operand in operands if isinstance(operand, Node) and operand.name not in constants]
    if not computed:
        return None
    return Refusal(Kind.COMPUTED_OPERAND, f"{', '.join(map(repr, computed))} would have to be constant in Core ML")


def _dtype_refusal(node: Node) -> Refusal | None:
    for value in (node, *node.all_input_nodes):
        tensor = tensor_of(value)
        if tensor is not None and tensor.dtype not in INNER_DTYPES:
            return Refusal(Kind.DTYPE, f"Core ML has no dtype {tensor.dtype}")
    return None


def decide(
    program: ExportedProgram, skipped: Iterable[str] = (), take_over_constants: bool = True
) -> dict[Node, Refusal | None]:
    """Decides every operation of an edge program.

    Args:
        program: The edge program.
        skipped: Lower-case names that the user keeps outside Core ML.
        take_over_constants: Whether the weights go into the Core ML model.

    Returns:
        Every ``call_function`` node -> None when Core ML takes it, else the reason why not.
    """
    names = frozenset(skipped)
    known = constant_values(program, take_over_constants)
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    wide = dict(wide_constants(program))
    decisions: dict[Node, Refusal | None] = {}
    for node in nodes:
        reason = scalar_refusal(node) or next((wide[i.name] for i in node.all_input_nodes if i.name in wide), None)
        decisions[node] = refusal(node, names, known) or reason
        result = tensor_of(node)
        if reason is not None and result is not None and result.dtype == torch.int64:
            wide[node.name] = reason
    refuse_exposed(program, decisions, known)
    return decisions


_COPIES = frozenset({"aten.clone.default", "dim_order_ops._clone_dim_order.default"})


def refuse_exposed(
    program: ExportedProgram, decisions: dict[Node, Refusal | None], known: frozenset[str] | None = None
) -> None:
    """Refuses, in `decisions`, operations whose results no Core ML model can return, where these leave it.

    Args:
        program: The edge program.
        decisions: Every ``call_function`` node -> the reason why Core ML does not take it, or None.
        known: Names of constant values, when they were already computed.
    """
    constants = constant_names(program)
    folded = constant_values(program) if known is None else known
    # Refusing one node can expose the values of its neighbours; each round refuses at least one.
    while True:
        exposed = {
            node: reason
            for node in decisions
            if decisions[node] is None and (reason := _exposed(node, decisions, constants, folded))
        }
        if not exposed:
            return
        decisions.update(exposed)


def crossing_refusals(groups: Sequence[Sequence[Node]]) -> dict[Node, Refusal]:
    """Returns refusals of values that pass between partitions in a dtype that no Core ML model has at its edge."""
    home = {node: index for index, group in enumerate(groups) for node in group}
    found = {}
    for node, index in home.items():
        for value in node.all_input_nodes:
            tensor = tensor_of(value)
            if tensor is not None and tensor.dtype not in BOUNDARY_DTYPES and home.get(value, index) != index:
                found[value] = Refusal(
                    Kind.BOUNDARY_DTYPE,
                    f"its result passes between two partitions, and Core ML returns no {tensor.dtype} outputs",
                )
                found[node] = Refusal(
                    Kind.BOUNDARY_DTYPE,
                    f"it reads {value.name!r} from another partition; Core ML takes no {tensor.dtype} inputs",
                )
    return found


def _exposed(
    node: Node, decisions: Mapping[Node, Refusal | None], constants: frozenset[str], known: frozenset[str]
) -> Refusal | None:
    return (
        _exposed_dtype(node, decisions, constants)
        or _exposed_layout(node, decisions)
        or rank_refusal(node, decisions, known)
        or exposed_size(node, decisions)
    )


def _exposed_dtype(node: Node, decisions: Mapping[Node, Refusal | None], constants: frozenset[str]) -> Refusal | None:
    for value in node.all_input_nodes:
        tensor = tensor_of(value)
        if tensor is None or tensor.dtype in BOUNDARY_DTYPES:
            continue
        if value.name not in constants and decisions.get(value, "outside") is not None:
            return Refusal(
                Kind.BOUNDARY_DTYPE,
                f"it reads {value.name!r} from outside Core ML, which takes no {tensor.dtype} inputs",
            )
    tensor = tensor_of(node)
    if tensor is None or tensor.dtype in BOUNDARY_DTYPES:
        return None
    if any(decisions.get(user, "outside") is not None for user in node.users):
        return Refusal(
            Kind.BOUNDARY_DTYPE, f"its result is needed outside Core ML, which returns no {tensor.dtype} outputs"
        )
    return None


def _exposed_layout(node: Node, decisions: Mapping[Node, Refusal | None]) -> Refusal | None:
    """Refuses a copy from or into another memory format that is seen outside: Core ML's tensors are contiguous."""
    read = [value for value in node.all_input_nodes if is_strided(value)]
    if op_name(node) in _COPIES and any(decisions.get(value, "outside") is not None for value in read):
        return Refusal(Kind.DIMENSION_ORDER, f"it makes {read[0].name!r} contiguous for Core ML")
    if "dim_order" not in node.kwargs or all(decisions.get(user, "outside") is None for user in node.users):
        return None
    order = list(node.kwargs["dim_order"] or ())  # type: ignore[arg-type]
    if order == sorted(order):
        return None
    return Refusal(Kind.DIMENSION_ORDER, f"its result is needed outside Core ML in dimension order {order}")


def rejections(decisions: Mapping[Node, Refusal | None]) -> list[Rejection]:
    """Returns the refused operations, in graph order."""
    return [
        Rejection(
            op_name(node), node.name, found.reason, source_line(node.meta.get("stack_trace")), found.kind, found.remedy
        )
        for node, found in decisions.items()
        if found is not None
    ]
