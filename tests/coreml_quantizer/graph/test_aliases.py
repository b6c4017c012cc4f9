"""An operator is treated alike by whichever of its names a model calls it."""

import pytest
import torch
from helpers.graphs import IMAGE, call, calls, is_float_output, output_qparams, placements, quantize
from torch import Tensor, nn

from coreml_quantizer.graph.aliases import ALIASES, resolve_aliases

aten = torch.ops.aten


@pytest.mark.parametrize("alias", ALIASES, ids=str)
def test_both_names_take_the_same_arguments(alias: torch._ops.OpOverload) -> None:
    ours, theirs = (
        [(argument.name, str(argument.type), argument.default_value) for argument in op._schema.arguments]
        for op in (alias, ALIASES[alias])
    )
    assert ours == theirs


class Block(nn.Module):
    """Two layers, joined in one of several spellings."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spelling = spelling
        self.first, self.second, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        if self.spelling == "usual":
            gated = torch.mul(a.clamp(-1, 1), torch.sigmoid(torch.div(b, 2)))
            return self.last(torch.cat([gated, torch.sub(a, b)], 1))
        gated = torch.multiply(a.clip(-1, 1), torch.special.expit(torch.true_divide(b, 2)))
        return self.last(torch.concat([gated, torch.subtract(a, b)], 1))


def test_quantizers_stand_alike_around_other_names() -> None:
    usual, other = (quantize(Block(spelling), IMAGE) for spelling in ("usual", "other"))
    assert placements(other) == placements(usual)
    assert torch.equal(other(*IMAGE), usual(*IMAGE))
    joined = call(other, aten.cat)
    assert {output_qparams(joined)} == {(source.args[1], source.args[2]) for source in joined.args[0]}


def test_scores_in_front_of_a_softmax_stay_float_by_its_other_name_too() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.special.softmax(torch.multiply(self.conv(x), 0.3), 1)

    assert is_float_output(call(quantize(Scores(), IMAGE), aten.mul))


def test_complex_numbers_keep_what_means_something_else_for_them() -> None:
    class Adjoint(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mH

    x = torch.zeros(2, 2, dtype=torch.complex64)
    graph = torch.export.export(Adjoint(), (x,)).module()
    resolve_aliases(graph)
    assert not calls(graph, aten.mT)
