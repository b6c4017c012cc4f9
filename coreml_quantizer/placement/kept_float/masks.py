"""The recognition of attention masks: values that mean minus infinity and must never set a range."""

import operator

import torch
from torch.fx import GraphModule, Node

from coreml_quantizer.graph.nodes import packet_of
from coreml_quantizer.rules import RuleTable

MASKING_VALUE = 1e4
"""The smallest magnitude that means "never attend here". Transformers use -1e4, finfo.min or -inf."""

aten = torch.ops.aten

_FILLS: dict[torch._ops.OpOverloadPacket, tuple[int, ...]] = {
    aten.full: (1,),
    aten.full_like: (1,),
    aten.new_full: (2,),
    aten.masked_fill: (2,),
    aten.masked_fill_: (2,),
    aten.scalar_tensor: (0,),
    aten.where: (1, 2),
    aten.mul: (1,),
    aten.mul_: (1,),
}
"""Operators that put a scalar into a tensor, with the positions of the arguments that can be the scalar."""

_FACTORS = frozenset({aten.mul, aten.mul_})

_KEEPING = frozenset(
    {
        aten.add, aten.add_, aten.sub, aten.sub_, aten.mul, aten.mul_, aten.div, aten.neg, aten.where, aten.masked_fill,
        aten.masked_fill_, aten.triu, aten.tril, aten.maximum, aten.minimum, aten.max, aten.min, aten.clamp,
        aten.index_put, aten.index_put_, aten.lift_fresh_copy,
    }
)  # fmt: skip
"""Operators that compute, and whose output holds masking values when an input does.

The same is true of every operator that only moves values. Every other operator (softmax, matrix products) ends a mask.
"""


class MaskFinder:
    """A finder of masks, which follows them through a graph; nodes must be visited in topological order."""

    def __init__(self, graph_module: GraphModule, rules: RuleTable) -> None:
        self._graph_module = graph_module
        self._rules = rules
        self._masks: set[Node] = set()

    def visit(self, node: Node) -> None:
        """Notes whether `node` holds masking values."""
        if node.op == "get_attr":
            found = self._constant_masks(node)
        else:
            packet = packet_of(node)
            found = _fills_with_mask(node, packet) or (
                (packet in _KEEPING or self._rules.movement(node) is not None)
                and any(source in self._masks for source in node.all_input_nodes)
            )
        if found:
            self._masks.add(node)

    def __contains__(self, node: Node) -> bool:
        return node in self._masks

    def _constant_masks(self, node: Node) -> bool:
        # Parameters are trained weights; reading all of them would cost more than annotating does.
        value: object = operator.attrgetter(str(node.target))(self._graph_module)
        if isinstance(value, torch.nn.Parameter) or not isinstance(value, torch.Tensor):
            return False
        if not value.is_floating_point() or value.numel() == 0:
            return False
        return bool(value.min() <= -MASKING_VALUE)


def _fills_with_mask(node: Node, packet: object) -> bool:
    positions = _FILLS.get(packet, ())  # type: ignore[call-overload]
    scalars = (node.args[position] for position in positions if len(node.args) > position)
    # A factor masks by its magnitude: (1 - keep) * -1e4 and scores - 1e4 * (1 - keep) do the same.
    limit = abs if packet in _FACTORS else _negated
    return any(isinstance(scalar, int | float) and limit(scalar) >= MASKING_VALUE for scalar in scalars)


def _negated(scalar: float) -> float:
    return -scalar
