"""The table of operator rules: how quantization treats each ATen operator, and why."""

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
"""Position of an operand: the index of an argument, or (index of a list argument, index in the list)."""


class Treatment(Enum):
    """The treatment of an operator's output."""

    QUANTIZED = "quantized"
    """Inputs and output are quantized; a batch norm and an activation after it are fused into it."""

    ACTIVATION = "activation"
    """Fused into the operator before it; alone, its output is quantized when its input is."""

    BATCH_NORM = "batch norm"
    """Fused into the convolution or linear layer before it; alone it stays in floating point."""

    SHARED = "shares its input's qparams"
    """The output holds values of the input, so it carries the same scale and zero point."""

    CONCATENATED = "inputs and output share qparams"
    """The same as SHARED for a list of inputs, which all take one scale and zero point."""

    SPLIT = "its parts share its input's qparams"
    """The same as SHARED for an operator that returns a list; the list itself is not quantized."""

    FLOAT = "float"
    """Deliberately left in floating point; its output range is used when another operator quantizes its output."""


class OutputRange(Enum):
    """Knowledge about the range of an operator's output before anything is observed."""

    ANY = "any"
    NON_NEGATIVE = "non-negative"


class Movement(Enum):
    """The way in which an operator that computes nothing passes on the values of its inputs."""

    WHOLE = "every value once"
    """For example a reshape or a permutation."""

    PARTS = "some of the values, or several times, or beside others"
    """For example a slice, a repetition or a concatenation."""


UNIT_INTERVAL = FixedSpec(UINT8, scale=1.0 / 256.0, zero_point=0)
"""Outputs in [0, 1]. Source: coremltools' LinearQuantizer, fixed qparams of sigmoid, hardsigmoid and softmax."""

SYMMETRIC_UNIT_INTERVAL = FixedSpec(UINT8, scale=2.0 / 256.0, zero_point=128)
"""Outputs in [-1, 1]. Source: coremltools' LinearQuantizer, fixed qparams of tanh."""


@dataclass(frozen=True)
class WeightRole:
    """The position of the weight among the arguments, and the axis of its output channels."""

    position: int
    channel_axis: int = 0


def _always(node: Node) -> bool:
    return True


@dataclass(frozen=True)
class OpRule:
    """The treatment of one operator, in all its overloads, by quantization.

    Attributes:
        op: The ATen operator.
        treatment: What happens to its output.
        inputs: Positions of the activations that are quantized with it; a function of the node if they are in a list.
        weight: Its weight, if it has one.
        weights_of: Positions of further operands that are weights when they are constants, to their channel axes.
        weights_only: Whether only its weights are quantized, even if the configuration quantizes activations.
        output_range: What is known about the range of its output; a function of the node if arguments decide.
        contracts: Position of an input to the axis that a product sums over, counted from the end; a constant there
            is a weight.
        applies: Function that returns whether the rule holds for a node, if arguments decide; other nodes stay float.
        otherwise: Why a node that the rule does not hold for stays float.
        combines: Whether it adds, subtracts or multiplies activations element by element. Then it takes the affine
            scheme if all its inputs have it, and stays float before a function that eight bits ruin.
        moves: How it passes on values, if it computes nothing: its output holds values of its inputs, unchanged except
            for their type, and padding. Masks, and values that eight bits would ruin, are traced through it.
        reason: Why it is treated in this way.
        source: Source of the reason.
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
        """Returns what is known about the output range of `node`, a call of this operator.

        Args:
            node: The call.
            fixes: Whether to return a fixed range as a `FixedSpec`; otherwise only whether it is non-negative.
        """
        known = self.output_range
        if isinstance(known, FixedSpec) and not fixes:
            return OutputRange.NON_NEGATIVE if known.non_negative else OutputRange.ANY
        return known if isinstance(known, OutputRange | FixedSpec) else known(node)

    def inputs_of(self, node: Node) -> tuple[Position, ...]:
        """Returns the positions of the activations that are quantized with `node`, a call of this operator."""
        return self.inputs if isinstance(self.inputs, tuple) else self.inputs(node)


class RuleTable:
    """Rules by operator. Registering an operator twice is an error, and so is a rule without a reason."""

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
        """Removes and returns the rule of `op`, so that another rule can be registered."""
        if op not in self._rules:
            raise RuleError(f"{op} has no rule to remove.")
        return self._rules.pop(op)

    def row(self, node: Node) -> OpRule | None:
        """Returns the rule of the operator that a node calls, whether it holds for its arguments or not."""
        called = packet_of(node)
        return self._rules.get(called) if callable(called) else None

    def movement(self, node: Node) -> Movement | None:
        """Returns how the operator that a node calls passes on values, for any arguments; None if it computes."""
        rule = self.row(node)
        return None if rule is None else rule.moves

    def lookup(self, node: Node) -> OpRule | None:
        """Returns the rule that holds for a node of a graph, None if there is none."""
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
    """Yields ATen operators, each followed by its in-place form if it has one."""
    for op in ops:
        yield op
        in_place = getattr(torch.ops.aten, f"{op.__name__}_", None)
        if in_place is not None:
            yield in_place
