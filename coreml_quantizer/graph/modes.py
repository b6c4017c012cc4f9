"""Operators that compute something else in training, and the arguments that tell them the mode."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch.fx import Node

from coreml_quantizer.graph.nodes import packet_of

aten = torch.ops.aten


@dataclass(frozen=True)
class ModeArgument:
    """The argument that tells an operator whether the model trains.

    Attributes:
        name: Name of the argument in the operator's schema.
        evaluating: Its value in evaluation.
        condition: Another argument: if it is missing or zero, training and evaluation are the same. None if the mode
            always makes a difference.
    """

    name: str
    evaluating: bool | float = False
    condition: str | None = None


DROPOUTS = (aten.dropout, aten.dropout_, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout)
"""Dropout operators; all take (input, probability, whether to drop)."""
_RECURRENT = (aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)

MODE_ARGUMENTS: Mapping[Any, ModeArgument] = MappingProxyType(
    {
        **dict.fromkeys(DROPOUTS, ModeArgument("train")),
        aten.batch_norm: ModeArgument("training", condition="running_mean"),
        aten.instance_norm: ModeArgument("use_input_stats", condition="running_mean"),
        aten.scaled_dot_product_attention: ModeArgument("dropout_p", evaluating=0.0),
        **dict.fromkeys(_RECURRENT, ModeArgument("train", condition="dropout")),
        aten.rrelu: ModeArgument("training"),
        aten.rrelu_: ModeArgument("training"),
    }
)


def trains(node: Node) -> bool:
    """Returns whether `node` calls an operator in training mode, and the mode makes a difference."""
    rule = MODE_ARGUMENTS.get(packet_of(node))
    if rule is None:
        return False
    mode, condition = (_value(node, name) for name in (rule.name, rule.condition))
    return mode != rule.evaluating and (rule.condition is None or condition not in (None, 0.0))


def mode_argument(op: torch._ops.OpOverload) -> tuple[ModeArgument, int]:
    """Returns the argument that tells `op` the mode, and its position."""
    rule = MODE_ARGUMENTS[op.overloadpacket]
    return rule, _names(op).index(rule.name)


def _value(node: Node, name: str | None) -> Any:
    if name is None:
        return None
    assert isinstance(node.target, torch._ops.OpOverload)
    position = _names(node.target).index(name)
    if name in node.kwargs or position >= len(node.args):
        return node.kwargs.get(name, node.target._schema.arguments[position].default_value)
    return node.args[position]


def _names(op: torch._ops.OpOverload) -> list[str]:
    return [argument.name for argument in op._schema.arguments]
