"""The operands of an einsum, and the channel axes of those that are weights."""

from collections.abc import Mapping

from torch.fx import Node

from coreml_quantizer.rules.registry import Position

_EQUATION, _OPERANDS = 0, 1


def einsum_inputs(node: Node) -> tuple[Position, ...]:
    """Returns the positions of all operands."""
    return tuple((_OPERANDS, index) for index in range(len(_operands(node))))


def multiplies(node: Node) -> bool:
    """Returns whether there is more than one operand; a single operand is only moved or summed."""
    return len(_operands(node)) > 1


def einsum_weights(node: Node) -> Mapping[Position, int]:
    """Returns the axis of the output channels of every matrix: one that the result keeps and no other operand has.

    An axis whose label occurs twice in the operand does not count. An operand without such an axis gets axis 0: a scale
    along a summed axis is as exact, because weights are dequantized before the product. Vectors stay in floating point,
    as biases do.
    """
    left, _, right = str(node.args[_EQUATION]).replace(" ", "").partition("->")
    terms = left.split(",")
    return {
        (_OPERANDS, index): _channel_axis(terms, index, right, operand.meta["val"].ndim)
        for index, operand in enumerate(_operands(node))
        if operand.meta["val"].ndim > 1
    }


def _operands(node: Node) -> list[Node]:
    operands = node.args[_OPERANDS]
    return [operand for operand in operands if isinstance(operand, Node)] if isinstance(operands, list | tuple) else []


def _channel_axis(terms: list[str], index: int, result: str, rank: int) -> int:
    others = "".join(terms[:index] + terms[index + 1 :])
    term = terms[index]
    for label in term.replace(".", ""):
        if label in result and label not in others and term.count(label) == 1:
            before, dots, after = term.partition("...")
            return rank - len(after) + after.index(label) if dots and label in after else before.index(label)
    return 0
