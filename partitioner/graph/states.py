"""Choice of the mutable buffers that become Core ML states, and of those that must stay with ExecuTorch.

A Core ML state is float16, starts at zeros and belongs to one model. Nothing outside that model can read it.
"""

from collections.abc import Collection

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.export import ExportedProgram

INITIAL_VALUE_KEY = "et_init_buffer"
"""Key in a placeholder's meta that tells ExecuTorch's emitter to store the initial value of a buffer."""

_COUNTS_BATCHES = (
    "; it counts the batches of a batch norm in training: call model.eval() before torch.export.export to be rid of it"
)
_NOT_ZEROS = (
    "it does not start at zeros, as Core ML's states do; if it need not, call zero_() on it before torch.export.export"
)


def initialized_buffers(program: ExportedProgram) -> frozenset[str]:
    """Returns the names of mutable buffers that are known not to start at zeros.

    Args:
        program: A program in functional form, ATen or edge; ExecuTorch may have hidden the values of its buffers.
    """
    tables = {**program.constants, **program.state_dict}
    names = program.graph_signature.buffers_to_mutate.values()
    with unset_fake_temporarily():
        return frozenset(
            name for name in names if _has_values(tables[name]) and bool(tables[name].detach().ne(0).any())
        )


def _has_values(table: torch.Tensor) -> bool:
    return not isinstance(table, FakeTensor)


def unfit(program: ExportedProgram, initialized: Collection[str]) -> dict[str, str]:
    """Finds the mutable buffers that a Core ML state cannot hold.

    Args:
        program: A program in functional form, ATen or edge.
        initialized: Names of the buffers that do not start at zeros.

    Returns:
        Name of a buffer -> why it stays outside Core ML.
    """
    tables = {**program.constants, **program.state_dict}
    found = {}
    for name in program.graph_signature.buffers_to_mutate.values():
        dtype = tables[name].dtype
        if not dtype.is_floating_point:
            counts = _COUNTS_BATCHES if name.endswith("num_batches_tracked") else ""
            found[name] = f"it holds {dtype}, and Core ML's states are float16{counts}"
        elif name in initialized:
            found[name] = _NOT_ZEROS
    return found


def detach(program: ExportedProgram) -> None:
    """Detaches the mutable buffers from autograd, in the program's own tables and in its example values.

    If a model wrote to a buffer outside ``torch.no_grad()``, the buffer has a gradient. Such a buffer cannot be written
    to in place.

    Args:
        program: A program in functional form. It shares its tables with no other program.
    """
    written = set(program.graph_signature.buffers_to_mutate.values())
    buffers = program.graph_signature.inputs_to_buffers
    for table in (program.state_dict, program.constants):
        table.update({name: table[name].detach() for name in written & table.keys()})
    for node in program.graph.nodes:
        if buffers.get(node.name) in written:
            node.meta["val"] = node.meta["val"].detach()


def spread(program: ExportedProgram, buffers: Collection[str]) -> dict[str, str]:
    """Finds the mutable buffers that no single partition can hold as a state.

    Args:
        program: An edge program whose partitions are tagged.
        buffers: Names of the buffers to check.

    Returns:
        Name of a buffer -> why it stays outside Core ML.
    """
    signature = program.graph_signature
    named = {node.name: node for node in program.graph.nodes}
    written = {buffer: named[value] for value, buffer in signature.buffers_to_mutate.items()}
    found = {}
    for name, buffer in signature.inputs_to_buffers.items():
        if buffer not in buffers:
            continue
        value = written[buffer]
        touching = [*named[name].users, value, *(user for user in value.users if user.op == "call_function")]
        tags = {node.meta.get("delegation_tag") for node in touching if node.op != "output"}
        if len(tags) != 1 or None in tags:
            found[buffer] = "more than one partition, or something outside Core ML, reads or writes it"
        elif value.name in signature.user_outputs:
            found[buffer] = "the program returns its new value"
    return found


def keep_outside(program: ExportedProgram, buffers: Collection[str], initialized: Collection[str]) -> None:
    """Leaves buffers to ExecuTorch, with their initial values.

    Args:
        program: An edge program whose partitions are tagged.
        buffers: Names of the buffers that Core ML does not take over.
        initialized: Names of the buffers that do not start at zeros.
    """
    names = program.graph_signature.inputs_to_buffers
    for node in program.graph.nodes:
        buffer = names.get(node.name)
        if buffer in buffers:
            node.meta.pop("delegation_tag", None)
            if buffer in initialized:
                node.meta[INITIAL_VALUE_KEY] = True
