"""The operands of a call: which are weights, and which are activations."""

from collections.abc import Container, Mapping

from torch.fx import Node

from coreml_quantizer.graph.values import is_float
from coreml_quantizer.rules import OpRule
from coreml_quantizer.rules.registry import Position


def operand(node: Node, position: Position) -> Node | None:
    """Returns the node at `position` in the arguments of `node`, None when there is no node at that position."""
    index, *rest = position if isinstance(position, tuple) else (position,)
    found = node.args[index] if len(node.args) > index else None
    for inner in rest:
        found = found[inner] if isinstance(found, list | tuple) and len(found) > inner else None
    return found if isinstance(found, Node) else None


def weight_axes(node: Node, rule: OpRule, constants: Container[Node]) -> dict[Position, int]:
    """Returns the channel axis of every weight of `node`, by position; a weight is a constant operand."""
    found: dict[Position, int] = {}
    if rule.weight is not None:
        found[rule.weight.position] = rule.weight.channel_axis
    for position, summed in rule.contracts:
        factor = operand(node, position)
        if factor is not None and factor.meta["val"].ndim > 1:
            other = -1 if summed == -2 else -2
            found[position] = factor.meta["val"].ndim + other
    if rule.weights_of is not None:
        found.update(rule.weights_of(node))
    return {position: axis for position, axis in found.items() if operand(node, position) in constants}


def activations(node: Node, rule: OpRule, weights: Mapping[Position, int], left_out: Container[Node]) -> list[Node]:
    """Returns the operands that can be quantized as activations, each once.

    Args:
        node: A call of the operator of `rule`.
        rule: Its rule.
        weights: Positions of its weights.
        left_out: Values that are no activations: constants, and values that are written in place.
    """
    if rule.weights_only:
        return []
    positions = [*rule.inputs_of(node), *([rule.weight.position] if rule.weight else [])]
    operands = (operand(node, position) for position in positions if position not in weights)
    return [
        found for found in dict.fromkeys(operands) if found is not None and found not in left_out and is_float(found)
    ]
