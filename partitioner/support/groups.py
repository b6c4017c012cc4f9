"""The partitions: groups of operations that each run as one call of Core ML."""

from collections.abc import Callable, Sequence

from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import create_op_support

from partitioner.refusals import Refusal
from partitioner.support.decide import crossing_refusals, refuse_exposed
from partitioner.support.sizes import crossing_sizes
from partitioner.support.small_groups import tiny_islands

Groups = Sequence[Sequence[Node]]
Decisions = dict[Node, Refusal | None]


def group(
    program: ExportedProgram,
    decisions: Decisions,
    failures: Callable[[Groups], dict[Node, Refusal]] | None = None,
    *,
    delegate_islands: bool = False,
) -> Groups:
    """Groups the taken operations into partitions.

    It refuses, in `decisions`, operations that fail to convert, whose results would pass between partitions in a dtype
    that no delegate takes, or that compute too little for a call.

    Args:
        program: An ATen or edge program.
        decisions: Every ``call_function`` node -> the reason why Core ML does not take it, or None.
        failures: Finds the operations of partitions that fail to convert, and why.
        delegate_islands: Whether small partitions between operations on the CPU go to Core ML too.
    """
    tried: set[frozenset[Node]] = set()
    while True:
        groups = _proposed(program, decisions)
        refused = {**crossing_refusals(groups), **crossing_sizes(groups)} if len(groups) > 1 else {}
        if not refused and not delegate_islands:
            refused = tiny_islands(program, groups, decisions)
        if not refused and failures is not None:
            refused = failures([nodes for nodes in groups if frozenset(nodes) not in tried])
            tried.update(map(frozenset, groups))
        if not refused:
            return groups
        decisions.update(refused)
        refuse_exposed(program, decisions)


def _proposed(program: ExportedProgram, decisions: Decisions) -> Groups:
    taken = [node for node, reason in decisions.items() if reason is None]
    if len(taken) == len(decisions):
        return [taken] if taken else []
    support = create_op_support(lambda _modules, node: decisions.get(node, "outside") is None)
    proposer = CapabilityBasedPartitioner(program.graph_module, support, allows_single_node_partition=True)
    return [list(partition.nodes) for partition in proposer.propose_partitions()]
