"""The partitions that are too small to be worth a delegate call.

A call copies its inputs and outputs and starts Core ML, some tenths of a millisecond even for one addition. A few
element-wise operations on small tensors between two operations on the CPU take microseconds there. The rule:

- nothing in the partition multiplies matrices, convolves or attends, and it has at most `MOST_OPERATIONS` operations,
  whose results have at most `MOST_ELEMENTS` elements together;
- it reads a result of an operation on the CPU, its own results are read by operations on the CPU, and it touches no
  other partition, no result of the program, and no mutable buffer;
- every operation of it has a kernel in ExecuTorch: it is in ATen's core set.
"""

import operator
from collections.abc import Collection, Mapping, Sequence

from torch.export import ExportedProgram
from torch.fx import Node

from partitioner.refusals import Kind, Refusal
from partitioner.support.compute import cost, is_product
from partitioner.support.kernels import runs_outside

MOST_OPERATIONS = 8
MOST_ELEMENTS = 2**16

REASON = (
    "a partition of {count} cheap operation{s} between operations on the CPU, where a delegate call would cost more "
    "than it saves"
)


def tiny_islands(
    program: ExportedProgram, groups: Sequence[Sequence[Node]], decisions: Mapping[Node, Refusal | None]
) -> dict[Node, Refusal]:
    """Finds the partitions that should stay on the CPU.

    Args:
        program: The edge program.
        groups: The operations of each partition.
        decisions: Every ``call_function`` node -> the reason why Core ML does not take it, or None.

    Returns:
        The operations of those partitions, each with the reason.
    """
    buffers = _mutable(program)
    found = {}
    for group in groups:
        if _is_cheap(group) and _is_between(group, decisions, buffers):
            operations = [node for node in group if node.target is not operator.getitem]
            reason = REASON.format(count=len(operations), s="" if len(operations) == 1 else "s")
            found.update(dict.fromkeys(group, Refusal(Kind.SMALL_PARTITION, reason)))
    return found


def _is_cheap(group: Sequence[Node]) -> bool:
    operations = [node for node in group if node.target is not operator.getitem]
    return (
        len(operations) <= MOST_OPERATIONS
        and all(runs_outside(node) and not is_product(node) for node in operations)
        and sum(map(cost, operations)) <= MOST_ELEMENTS
    )


def _is_between(group: Sequence[Node], decisions: Mapping[Node, Refusal | None], buffers: Collection[Node]) -> bool:
    inside = set(group)
    read = {value for node in group for value in node.all_input_nodes if value not in inside}
    users = {user for node in group for user in node.users if user not in inside}
    return (
        not read & set(buffers)
        and any(decisions.get(value) is not None for value in read)
        and all(decisions.get(value) is not None for value in read if value.op == "call_function")
        and bool(users)
        and all(decisions.get(user) is not None for user in users)
    )


def _mutable(program: ExportedProgram) -> set[Node]:
    written = set(program.graph_signature.buffers_to_mutate.values())
    names = {name for name, buffer in program.graph_signature.inputs_to_buffers.items() if buffer in written}
    return {node for node in program.graph.nodes if node.name in names}
