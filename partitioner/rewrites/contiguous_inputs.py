"""Contiguous copies of inputs whose elements are in another order, as those of channels-last images are.

Core ML's models take contiguous tensors. ExecuTorch makes the copies, and the program's inputs stay as they are.
"""

from torch.export import ExportedProgram
from torch.fx import Node

from partitioner.errors import UnsupportedOpError
from partitioner.graph.nodes import is_strided, tensor_of
from partitioner.graph.strides import follow_strides
from partitioner.graph.writing import write_contiguous

_CHANNELS_LAST = frozenset({(0, 2, 3, 1), (0, 2, 3, 4, 1)})


def copy_strided_inputs(program: ExportedProgram) -> None:
    """Writes, in place, a contiguous copy of each input that is not contiguous, for all operations that read it.

    Args:
        program: A program in functional form, before decompositions.

    Raises:
        UnsupportedOpError: The elements of an input are in an order that ExecuTorch's runtime does not take.
    """
    inputs = set(program.graph_signature.user_inputs)
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    strided = [node for node in placeholders if node.name in inputs and is_strided(node) and _is_computed_with(node)]
    if not strided:
        return
    _refuse_permuted(strided)
    moved = {_copied(node, placeholders[-1]) for node in strided}
    follow_strides(program.graph, moved)
    program.graph_module.recompile()


def _refuse_permuted(inputs: list[Node]) -> None:
    orders = {node.name: tuple(tensor_of(node).dim_order()) for node in inputs}  # type: ignore[union-attr]
    wrong = [f"  {name!r}: {order}" for name, order in orders.items() if order not in _CHANNELS_LAST]
    if wrong:
        raise UnsupportedOpError(
            "the program was exported with permuted inputs, and ExecuTorch's runtime takes contiguous and "
            "channels-last ones. Their dimensions lie in memory in the order\n"
            + "\n".join(wrong)
            + "\nExport with contiguous inputs: torch.export.export(model, (x.contiguous(),))"
        )


def _is_computed_with(node: Node) -> bool:
    return any(user.op == "call_function" for user in node.users)


def _copied(node: Node, last: Node) -> Node:
    with node.graph.inserting_after(last):
        copy = write_contiguous(node, node)
    copy.meta.pop("tensor_meta", None)
    node.replace_all_uses_with(copy, lambda user: user is not copy and user.op != "output")
    return copy
