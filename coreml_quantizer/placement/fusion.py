"""Fusions: operators that form one block with the operator before them, without a quantizer in between."""

from collections.abc import Callable, Container

from torch.fx import Node

from coreml_quantizer.graph.values import is_float
from coreml_quantizer.placement.operands import operand
from coreml_quantizer.placement.scope import ScopeResolver
from coreml_quantizer.rules import OpRule, RuleTable, Treatment
from coreml_quantizer.specs import OpSpec


class Fusions:
    """The fusions found so far: convolution or linear with batch norm, chains of affine maps, each with one activation.

    An affine map is an addition, subtraction or multiplication with one constant operand. Two in a row, such as the
    multiplication and the addition that replace a lone batch norm, are one function of one tensor. Rounding the value
    between them would cost accuracy and save nothing.
    """

    def __init__(self, rules: RuleTable, constants: Container[Node], scope: ScopeResolver) -> None:
        self._rules = rules
        self._constants = constants
        self._scope = scope
        self._heads: dict[Node, Node] = {}

    def __contains__(self, node: Node) -> bool:
        return node in self._heads

    def head(self, node: Node) -> Node:
        """Returns the operator that `node` is fused into."""
        return self._heads[node]

    def follow(self, node: Node, rule: OpRule, spec: OpSpec, stops: Callable[[Node], bool]) -> Node:
        """Fuses the operators that follow `node` into it, and returns the last node of the fusion.

        Args:
            node: A quantized operator.
            rule: Its rule.
            spec: Its spec; only operators with the same spec are fused.
            stops: Returns whether a node must not be quantized, and so must not be fused either.
        """
        tail = node
        if rule.weight is not None:
            tail = self._extend(tail, node, spec, stops, lambda _, found: found.treatment is Treatment.BATCH_NORM)
        if self._is_affine(node, rule):
            while (longer := self._extend(tail, node, spec, stops, self._is_affine)) is not tail:
                tail = longer
        return self._extend(tail, node, spec, stops, lambda _, found: found.treatment is Treatment.ACTIVATION)

    def _extend(
        self,
        tail: Node,
        head: Node,
        spec: OpSpec,
        stops: Callable[[Node], bool],
        fits: Callable[[Node, OpRule], bool],
    ) -> Node:
        users = list(tail.users)
        follower = users[0] if len(users) == 1 and users[0].op == "call_function" else None
        rule = self._rules.lookup(follower) if follower is not None else None
        if follower is None or rule is None or not fits(follower, rule) or stops(follower):
            return tail
        reads_first = rule.combines or operand(follower, 0) is tail
        if not reads_first or not is_float(follower) or self._scope.resolve(follower) != spec:
            return tail
        self._heads[follower] = head
        return follower

    def _is_affine(self, node: Node, rule: OpRule) -> bool:
        varying = [source for source in node.args if isinstance(source, Node) and source not in self._constants]
        return rule.combines and len(varying) == 1
