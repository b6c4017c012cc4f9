"""The number of multiply-adds (a multiplication and an addition each) that an operator call makes."""

from collections.abc import Callable, Mapping
from math import prod
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from torch.fx import GraphModule, Node

Shape = tuple[int, ...]
_MATRIX = 2


def multiply_adds(node: Node, graph_module: GraphModule) -> int:
    """Returns how many multiply-adds a call makes, 0 for an operator that is no product.

    A dynamic dimension counts with the size that it had in the example inputs of the export.

    Args:
        node: A call in a prepared graph.
        graph_module: The graph.
    """
    packet = str(getattr(node.target, "overloadpacket", "")).rstrip("_")
    count = _COUNTS.get(packet)
    if count is None:
        return 0
    return count(shape_of(node, graph_module), [_operand(argument, graph_module) for argument in node.args])


def shape_of(node: Node, graph_module: GraphModule) -> Shape:
    """Returns the shape of the tensor that `node` makes, or observes; () when it makes none."""
    while node.op == "call_module":
        node = node.all_input_nodes[0]
    value = node.meta.get("val")
    if value is None and node.op == "get_attr":
        value = attrgetter(str(node.target))(graph_module)
    return tuple(_extent(extent) for extent in getattr(value, "shape", ()))


def _extent(extent: Any) -> int:
    if isinstance(extent, int):
        return extent
    hint = extent.node.hint
    return 1 if hint is None else int(hint)


def _operand(argument: Any, graph_module: GraphModule) -> Any:
    if isinstance(argument, Node):
        return shape_of(argument, graph_module)
    if isinstance(argument, list | tuple):
        return [_operand(inner, graph_module) for inner in argument]
    return argument


def _convolution(output: Shape, operands: list[Any]) -> int:
    return prod(output) * prod(operands[1][1:])


def _transposed_convolution(output: Shape, operands: list[Any]) -> int:
    return prod(operands[0]) * prod(operands[1][1:])


def _any_convolution(output: Shape, operands: list[Any]) -> int:
    transposed = operands[6]
    return (_transposed_convolution if transposed else _convolution)(output, operands)


def _product(position: int) -> Callable[[Shape, list[Any]], int]:
    return lambda output, operands: prod(output) * operands[position][-1]


def _attention(output: Shape, operands: list[Any]) -> int:
    query, key = operands[0], operands[1]
    return prod(query) * key[-2] + prod(output) * key[-2]


def _einsum(output: Shape, operands: list[Any]) -> int:
    """Returns the product of all extents, which is the count of an einsum of two operands; 0 for one operand."""
    terms = operands[0].split("->")[0].replace(" ", "").split(",")
    if len(terms) < 2:
        return 0
    extents: dict[str, int] = {}
    for term, shape in zip(terms, operands[1], strict=True):
        for label, extent in zip(_labels(term, len(shape)), shape, strict=True):
            extents[label] = max(extent, extents.get(label, 1))
    return prod(extents.values())


def _labels(term: str, rank: int) -> list[str]:
    """Returns a label for each dimension of an operand; dimensions under "..." are numbered from the last."""
    before, dots, behind = term.partition("...")
    hidden = rank - len(before) - len(behind) if dots else 0
    return [*before, *(str(number) for number in range(hidden, 0, -1)), *behind]


def _cell(output: Shape, operands: list[Any]) -> int:
    """Returns the count of one step: the products with the matrix of the input and the matrix of the state."""
    return prod(operands[0][:-1]) * (prod(operands[2]) + prod(operands[3]))


def _recurrent(output: Shape, operands: list[Any]) -> int:
    """Returns the count of all steps: every matrix is used once in every step of every sequence."""
    matrices = [shape for shape in operands[2] if len(shape) == _MATRIX]
    return prod(operands[0][:-1]) * sum(map(prod, matrices))


_COUNTS: Mapping[str, Callable[[Shape, list[Any]], int]] = MappingProxyType(
    {
        **dict.fromkeys(("aten.conv1d", "aten.conv2d", "aten.conv3d"), _convolution),
        **dict.fromkeys(
            ("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d"), _transposed_convolution
        ),
        **dict.fromkeys(("aten.linear", "aten.matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot"), _product(0)),
        **dict.fromkeys(("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu"), _recurrent),
        **dict.fromkeys(("aten.lstm_cell", "aten.gru_cell", "aten.rnn_tanh_cell", "aten.rnn_relu_cell"), _cell),
        "aten.convolution": _any_convolution,
        **dict.fromkeys(("aten.addmm", "aten.baddbmm"), _product(1)),
        "aten.scaled_dot_product_attention": _attention,
        "aten.einsum": _einsum,
    }
)
