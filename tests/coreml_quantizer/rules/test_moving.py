"""Operators that only move values: a row in the table is all that masks and fragile values need to follow them."""

import operator

import pytest
import torch
from helpers.graphs import prepare
from torch import Tensor, nn

from coreml_quantizer import Movement, rules
from coreml_quantizer.placement.decisions import decisions_of
from coreml_quantizer.placement.kept_float.masks import MaskFinder
from coreml_quantizer.rules import OpRule, Treatment

aten = torch.ops.aten
MOVING = [rule.op for rule in rules if rule.moves is not None and rule.op is not operator.getitem]


def test_what_moves_values_shares_their_scale() -> None:
    treatments = {rule.treatment for rule in rules if rule.moves is not None}
    assert treatments == {Treatment.SHARED, Treatment.CONCATENATED, Treatment.SPLIT}
    assert len(MOVING) > 70
    assert not any(rule.moves for rule in rules if rule.op in (aten.max_pool2d, aten.mean, aten.relu, aten.add))


@pytest.mark.parametrize("op", MOVING, ids=str)
def test_a_mask_stays_a_mask_through_every_such_operator(op: object) -> None:
    graph = torch.fx.Graph()
    scores = graph.placeholder("scores")
    mask = graph.call_function(aten.masked_fill.Scalar, (scores, scores, float("-inf")))
    overload = getattr(op, op.overloads()[0])  # type: ignore[attr-defined]
    moved = graph.call_function(overload, (mask,))
    finder = MaskFinder(torch.fx.GraphModule(nn.Module(), graph), rules)
    for node in graph.nodes:
        finder.visit(node)
    assert moved in finder


class NarrowedMask(nn.Module):
    def __init__(self, move) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)
        self.move = move

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        mask = self.move(torch.zeros(1, 8, 8).masked_fill(keep, -1e4))
        return torch.softmax(scores + mask, -1)


MOVES = {
    "narrow": lambda mask: mask.narrow(1, 0, 4).narrow(2, 0, 4),
    "gather": lambda mask: mask.gather(1, torch.arange(4).view(1, 4, 1).expand(1, 4, 8))[:, :, :4],
    "index_select": lambda mask: mask.index_select(1, torch.arange(4)).index_select(2, torch.arange(4)),
    "tile": lambda mask: mask[:, :2, :2].tile(1, 2, 2),
    "repeat_interleave": lambda mask: mask[:, :2, :4].repeat_interleave(2, 1),
    "pad": lambda mask: nn.functional.pad(mask[:, :3, :3], (0, 1, 0, 1)),
    "rot90": lambda mask: torch.rot90(mask[:, :4, :4], 1, (1, 2)),
    "swapaxes": lambda mask: mask[:, :4, :4].swapaxes(1, 2),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
def test_the_sum_with_a_moved_mask_is_known_as_masking(move) -> None:
    torch.manual_seed(0)
    model = NarrowedMask(move).eval()
    inputs = (torch.randn(1, 4, 8), torch.rand(1, 8, 8) > 0.5)
    (decision,) = (found for found in decisions_of(prepare(model, inputs)) if found.op == "aten.add")
    assert decision.reason == "one of its operands holds masking values, which must never set a range"


def test_a_registered_operator_is_followed_as_well() -> None:
    rule = rules.unregister(aten.roll)
    graph = torch.fx.Graph()
    filled = graph.call_function(aten.full.default, ([2], -1e4))
    moved = graph.call_function(aten.roll.default, (filled, [1]))

    def is_mask() -> bool:
        finder = MaskFinder(torch.fx.GraphModule(nn.Module(), graph), rules)
        for node in graph.nodes:
            finder.visit(node)
        return moved in finder

    try:
        assert not is_mask()
        rules.register(OpRule(aten.roll, Treatment.SHARED, moves=Movement.WHOLE, reason="as any other"))
        assert is_mask()
        rules.unregister(aten.roll)
    finally:
        rules.register(rule)


class SumBeforeNorm(nn.Module):
    def __init__(self, move) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.move = move

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.move(self.first(x) + self.second(x)))


WHOLE = {
    "roll": lambda x: x.roll(1, 1),
    "flip": lambda x: x.flip(1),
    "movedim": lambda x: x.movedim(1, 0),
    "swapaxes": lambda x: x.swapaxes(0, 1),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
}
PARTS = {
    "slice": lambda x: x[:, :2],
    "concatenation": lambda x: torch.cat((x, x), 1),
    "repeat": lambda x: x.repeat(2, 1, 1),
}


@pytest.mark.parametrize(
    ("move", "stays_float"),
    [*((move, True) for move in WHOLE.values()), *((move, False) for move in PARTS.values())],
    ids=[*WHOLE, *PARTS],
)
def test_a_norm_reads_a_sum_through_what_hands_on_all_of_it(move, stays_float: bool) -> None:
    torch.manual_seed(0)
    prepared = prepare(SumBeforeNorm(move).eval(), (torch.randn(2, 4, 8),))
    (decision,) = (found for found in decisions_of(prepared) if found.op == "aten.add")
    assert ("a norm reads it" in decision.reason) is stays_float
