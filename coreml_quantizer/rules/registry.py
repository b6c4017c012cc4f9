"""The table of operator rules: what each ATen operator is to quantization, and why."""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch.fx import Node

from coreml_quantizer.errors import RuleError
from coreml_quantizer.graph.nodes import packet_of
from coreml_quantizer.specs import UINT8, FixedSpec

OpPacket = torch._ops.OpOverloadPacket | Callable[..., object]
"""An ATen operator, or a Python function that graphs call, such as `operator.getitem`."""

Position = int | tuple[int, int]
"""Where an operand stands among the arguments: at an index, or in a list at an index."""


class Treatment(Enum):
    """What happens to the output of an operator."""

    QUANTIZED = "quantized"
    """Inputs and output are quantized; batch norm and an activation behind it are fused into it."""

    ACTIVATION = "activation"
    """Fused into the operator before it; alone, its output is quantized when its input is."""

    BATCH_NORM = "batch norm"
    """Fused into the convolution or linear layer before it; alone it stays in floating point."""

    SHARED = "shares its input's qparams"
    """The output holds values of the input, so it carries the same scale and zero point."""

    CONCATENATED = "inputs and output share qparams"
    """As SHARED, for a list of inputs, which all take one scale and zero point."""

    SPLIT = "its parts share its input's qparams"
    """As SHARED, for an operator that returns a list, which itself carries no quantizer."""

    FLOAT = "float"
    """Deliberately left in floating point; what it says of its output range helps whoever quantizes it."""


class OutputRange(Enum):
    """What an operator says about the range of its output before anything is observed."""

    ANY = "any"
    NON_NEGATIVE = "non-negative"


class Movement(Enum):
    """How an operator that computes nothing hands on the values of its inputs."""

    WHOLE = "every value once"
    """Such as a reshape or a permutation."""

    PARTS = "some of the values, or several times, or beside others"
    """Such as a slice, a repetition or a concatenation."""


UNIT_INTERVAL = FixedSpec(UINT8, scale=1.0 / 256.0, zero_point=0)
"""Outputs in [0, 1]. Source: coremltools' LinearQuantizer, fixed qparams of sigmoid, hardsigmoid and softmax."""

SYMMETRIC_UNIT_INTERVAL = FixedSpec(UINT8, scale=2.0 / 256.0, zero_point=128)
"""Outputs in [-1, 1]. Source: coremltools' LinearQuantizer, fixed qparams of tanh."""


@dataclass(frozen=True)
class WeightRole:
    """Which argument is the weight, and which of its axes holds the output channels."""

    position: int
    channel_axis: int = 0


def _always(node: Node) -> bool:
    return True


@dataclass(frozen=True)
class OpRule:
    """What one operator, in all its overloads, is to quantization.

    Attributes:
        op: The ATen operator.
        treatment: What happens to its output.
        inputs: Positions of the activations that are quantized with it; a function of the node where they are a list.
        weight: Its weight, if it has one.
        weights_of: Positions of further operands that are weights when they are constants, to their channel axes.
        weights_only: Whether only its weights are quantized, whatever the configuration says of activations.
        output_range: What is known of its output; a function of the node where arguments decide.
        contracts: Position of an input to the axis that a product sums over, counted from the end; a constant there
            is a weight.
        applies: Whether the rule holds for a node, where arguments decide; a node it does not hold for stays float.
        otherwise: Why a node stays float that the rule does not hold for.
        combines: Whether it adds, subtracts or multiplies activations element by element; such an operator takes the
            affine scheme when all its inputs have it, and stays in float in front of a function that eight bits ruin.
        moves: How it hands on values, if it computes nothing: its output holds values of its inputs, unchanged but for
            their type, and padding. Masks, and values that eight bits would ruin, are followed through it.
        reason: Why it is treated so.
        source: Where that comes from.
    """

    op: OpPacket
    treatment: Treatment
    inputs: tuple[Position, ...] | Callable[[Node], tuple[Position, ...]] = (0,)
    weight: WeightRole | None = None
    weights_of: Callable[[Node], Mapping[Position, int]] | None = None
    weights_only: bool = False
    output_range: OutputRange | FixedSpec | Callable[[Node], OutputRange] = OutputRange.ANY
    contracts: tuple[tuple[int, int], ...] = ()
    applies: Callable[[Node], bool] = _always
    otherwise: str = ""
    combines: bool = False
    moves: Movement | None = None
    reason: str = ""
    source: str = ""

    def range_of(self, node: Node, fixes: bool) -> OutputRange | FixedSpec:
        """Returns what is known of the output range of `node`, a call of this operator.

        Args:
            node: The call.
            fixes: Whether a range that the operator fixes is wanted as that, and not only where it starts.
        """
        known = self.output_range
        if isinstance(known, FixedSpec) and not fixes:
            return OutputRange.NON_NEGATIVE if known.non_negative else OutputRange.ANY
        return known if isinstance(known, OutputRange | FixedSpec) else known(node)

    def inputs_of(self, node: Node) -> tuple[Position, ...]:
        """Returns the positions of the activations that are quantized with `node`, a call of this operator."""
        return self.inputs if isinstance(self.inputs, tuple) else self.inputs(node)


class RuleTable:
    """Rules by operator. Registering an operator twice raises; so does a rule without a reason."""

    def __init__(self) -> None:
        self._rules: dict[OpPacket, OpRule] = {}

    def register(self, *rules: OpRule) -> None:
        """Adds rules.

        Raises:
            RuleError: An operator has a rule already, or a rule is not well formed.
        """
        for rule in rules:
            _check(rule)
            if rule.op in self._rules:
                raise RuleError(f"{rule.op} has a rule already; remove it first with `rules.unregister({rule.op})`.")
            self._rules[rule.op] = rule

    def unregister(self, op: OpPacket) -> OpRule:
        """Removes and returns the rule of `op`, so that another can take its place."""
        if op not in self._rules:
            raise RuleError(f"{op} has no rule to remove.")
        return self._rules.pop(op)

    def row(self, node: Node) -> OpRule | None:
        """Returns the rule of the operator that a node calls, whether it holds for its arguments or not."""
        called = packet_of(node)
        return self._rules.get(called) if callable(called) else None

    def movement(self, node: Node) -> Movement | None:
        """Returns how the operator that a node calls hands on values, whatever its arguments; None if it computes."""
        rule = self.row(node)
        return None if rule is None else rule.moves

    def lookup(self, node: Node) -> OpRule | None:
        """Returns the rule that holds for a node of a graph, None when there is none."""
        rule = self.row(node)
        return rule if rule is not None and rule.applies(node) else None

    def __iter__(self) -> Iterator[OpRule]:
        return iter(self._rules.values())

    def __len__(self) -> int:
        return len(self._rules)


def _check(rule: object) -> None:
    if not isinstance(rule, OpRule):
        raise RuleError(f"{rule!r} is no OpRule; write OpRule(torch.ops.aten.relu, Treatment.SHARED, reason=...).")
    if isinstance(rule.op, torch._ops.OpOverload):
        raise RuleError(f"{rule.op} is one overload; rules are for all of them: OpRule({rule.op.overloadpacket}, ...).")
    if not isinstance(rule.op, torch._ops.OpOverloadPacket) and rule.op is not operator.getitem:
        raise RuleError(f"{rule.op!r} never stands in an exported graph; name an operator such as torch.ops.aten.relu.")
    if not isinstance(rule.treatment, Treatment):
        raise RuleError(
            f"The rule for {rule.op} has treatment {rule.treatment!r}; use one of {', '.join(map(str, Treatment))}."
        )
    if not isinstance(rule.moves, Movement | None):
        raise RuleError(
            f"The rule for {rule.op} has moves={rule.moves!r}; use None or one of {', '.join(map(str, Movement))}."
        )
    if not rule.reason:
        raise RuleError(f"The rule for {rule.op} needs a reason: it stands in the table of operators.")
    if rule.applies is not _always and not rule.otherwise:
        raise RuleError(f"The rule for {rule.op} does not always hold; say in `otherwise` why a node then stays float.")


def with_in_place(*ops: torch._ops.OpOverloadPacket) -> Iterator[torch._ops.OpOverloadPacket]:
    """Yields ATen operators, each followed by its in-place form where it has one."""
    for op in ops:
        yield op
        in_place = getattr(torch.ops.aten, f"{op.__name__}_", None)
        if in_place is not None:
            yield in_place
