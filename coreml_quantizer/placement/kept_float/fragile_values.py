"""Values that eight bits would ruin: divisors, and inputs of softmax, roots, logarithms, sines and norms."""

import operator
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch
from torch.fx import Node

from coreml_quantizer.graph.nodes import packet_of
from coreml_quantizer.graph.values import is_float
from coreml_quantizer.rules import Movement, RuleTable

aten = torch.ops.aten

_SENSITIVE = frozenset(
    {
        aten.softmax, aten._softmax, aten.log_softmax, aten.rsqrt, aten.sqrt, aten.reciprocal, aten.log, aten.log2,
        aten.log1p, aten.exp, aten.expm1, aten.exp2, aten.sin, aten.cos, aten.tan, aten.floor, aten.ceil, aten.round,
        aten.trunc, aten.frac, aten.remainder, aten.fmod, aten.pow, aten.argmax, aten.argmin, aten.topk, aten.sort,
        aten.eq, aten.ne, aten.lt, aten.le, aten.gt, aten.ge, aten.erf,
    }
)  # fmt: skip
"""Functions that are steep or periodic, or that decide by the smallest difference."""

_NORMS = frozenset(
    {
        aten.layer_norm, aten.native_layer_norm, aten.rms_norm, aten.group_norm, aten.instance_norm, aten.pow,
        aten.square, aten.var, aten.var_mean, aten.linalg_vector_norm,
    }
)  # fmt: skip
"""Norms, and the operators that start a norm which a model writes out itself."""

_KEEPING = frozenset(
    {
        aten.maximum, aten.minimum, aten.clamp, aten.clamp_min, aten.neg, aten.abs, aten.add, aten.sub, aten.mul,
        aten.div, aten.masked_fill, aten.where,
    }
)  # fmt: skip
"""Operators that compute, and that pass a value on to one of the sensitive functions.

Operators that only move values pass it on as well.
"""

_POLES: Mapping[object, int] = MappingProxyType(
    {
        aten.div: 1,
        **dict.fromkeys((aten.reciprocal, aten.rsqrt, aten.log, aten.log2, aten.log10), 0),
    }
)
"""Functions that are infinite when one operand is zero, with the position of that operand."""

_KEEPING_SMALL = frozenset(
    {
        aten.neg, aten.abs, aten.add, aten.clamp, aten.clamp_min, aten.maximum, aten.relu, aten.hardtanh, aten.sqrt,
        aten.batch_norm, operator.getitem,
    }
)  # fmt: skip
"""Operators that change small values only a little."""


NEAR_POLE = "it is divided by, or goes into a logarithm or an inverse root, and eight bits round what is small to zero"


def find_near_poles(nodes: Iterable[Node], moves: Callable[[Node], bool]) -> frozenset[Node]:
    """Returns the nodes whose values are divisors, or inputs of a logarithm or an inverse root.

    Eight bits hold nothing between zero and one step of the scale. A small value becomes zero, and the result becomes
    infinite or not a number. An added epsilon does not prevent that, because float16 loses it in the addition.

    Args:
        nodes: All nodes of one graph.
        moves: Returns whether the operator of a node only passes on the values that it reads.
    """
    found: set[Node] = set()
    for node in nodes:
        position = _POLES.get(packet_of(node)) if node.op == "call_function" else None
        stack = [node.args[position]] if position is not None and len(node.args) > position else []
        while stack:
            value = stack.pop()
            if not isinstance(value, Node) or value in found:
                continue
            found.add(value)
            if packet_of(value) in _KEEPING_SMALL or moves(value):
                stack.extend(value.all_input_nodes)
    return frozenset(found)


class FragileReaders:
    """The sensitive functions and norms that read the values of one graph; each node is examined once."""

    def __init__(self, rules: RuleTable) -> None:
        self._rules = rules
        self._known: dict[Node, bool] = {}

    def read_all_of(self, node: Node) -> bool:
        """Returns whether only sensitive functions read `node`, directly or through operators that pass values on."""
        stack = [node]
        while stack:
            current = stack[-1]
            unknown = [user for user in current.users if self._keeps(user) and user not in self._known]
            if current not in self._known and unknown:
                stack.extend(unknown)
                continue
            self._known[current] = bool(current.users) and all(
                _is_sensitive(user) or (self._keeps(user) and self._known[user]) for user in current.users
            )
            stack.pop()
        return self._known[node]

    def include_norm(self, node: Node) -> bool:
        """Returns whether a norm reads the values of `node`, directly or through operators that only move values.

        A few large values leave little precision for the others, and a norm magnifies the others. In a transformer,
        eight bits cost most where they round the sums in front of the norms (MiniLM, W8A8: mean cosine 0.87 with this
        rounding, 0.95 without).
        """
        stack = list(node.users)
        while stack:
            user = stack.pop()
            if packet_of(user) in _NORMS:
                return True
            if self._rules.movement(user) is Movement.WHOLE:
                stack.extend(user.users)
        return False

    def _keeps(self, node: Node) -> bool:
        return (packet_of(node) in _KEEPING or self._rules.movement(node) is not None) and not _is_sensitive(node)


def _is_sensitive(node: Node) -> bool:
    casts_to_index = packet_of(node) in (aten.to, aten._to_copy) and not is_float(node)
    return packet_of(node) in _SENSITIVE or casts_to_index
