"""Sigmoid, hardsigmoid, tanh and softmax: parameters that coremltools fixes, or that calibration finds."""

import pytest
import torch
from helpers.graphs import ROWS, call, calls, input_qparams, output_qparams, prepare, quantize
from torch import Tensor, nn

from coreml_quantizer import QuantizerConfig, presets
from coreml_quantizer.placement.decisions import decisions_of

aten = torch.ops.aten
BOUNDED = pytest.mark.parametrize(
    ("activation", "op", "fixed"),
    [
        (nn.Sigmoid(), aten.sigmoid, (1 / 256, 0)),
        (nn.Hardsigmoid(), aten.hardsigmoid, (1 / 256, 0)),
        (nn.Tanh(), aten.tanh, (2 / 256, 128)),
    ],
    ids=["sigmoid", "hardsigmoid", "tanh"],
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Gated(nn.Module):
    """A gate beside the values, in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 4)
        self.value = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.gate(x).sigmoid(), self.value(x)])


class Weighted(nn.Module):
    """A product that reads a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.scores(x), -1) @ x


@BOUNDED
@pytest.mark.parametrize("config", [None, QuantizerConfig(known_ranges="fixed")], ids=["coremltools", "asked for"])
def test_they_are_fixed_under_the_configuration_of_coremltools_and_where_asked_for(
    activation: nn.Module, op: object, fixed: tuple[float, int], config: object
) -> None:
    model = nn.Sequential(nn.Linear(6, 4), activation)
    assert output_qparams(call(quantize(model, ROWS, config), op)) == fixed
    assert decisions_of(prepare(model, ROWS, config))[1].outcome == "fixed"


@BOUNDED
@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
def test_they_are_observed_otherwise(activation: nn.Module, op: object, fixed: tuple[float, int], scheme: str) -> None:
    model = nn.Sequential(nn.Linear(6, 4), activation)
    config = presets.w8a8() if scheme == "affine" else presets.w8a8_symmetric()
    scale, zero_point = output_qparams(call(quantize(model, ROWS, config), op))
    values = model(*ROWS)
    symmetric = scheme == "symmetric" and fixed[1] == 128
    high, low = (float(end.detach()) for end in (values.max().clamp(min=0), values.min().clamp(max=0)))
    expected = max(high, -low) / 127.5 if symmetric else (high - low) / 255
    # Scales are the next float16 number above.
    assert expected <= scale <= expected * (1 + 2**-10)
    assert scale < fixed[0]
    assert zero_point == (fixed[1] if symmetric or low == 0 else round(-low / scale))


def test_the_weights_of_attention_are_read_at_the_resolution_that_they_need() -> None:
    fixed, observed = (
        input_qparams(call(quantize(Weighted(), ROWS, config), aten.matmul)) for config in (None, "w8a8")
    )
    assert fixed == (1 / 256, 0)
    assert observed[0] < fixed[0]
    assert observed[1] == 0


def test_cat_leaves_fixed_qparams_as_they_are_and_shares_observed_ones() -> None:
    graph = quantize(Gated(), ROWS)
    assert output_qparams(call(graph, aten.sigmoid)) == (1 / 256, 0)
    first, second = call(graph, aten.cat).args[0]
    assert first.args[1:3] == (1 / 256, 0)
    assert second.args[1:3] != (1 / 256, 0)
    graph = quantize(Gated(), ROWS, "w8a8")
    shared = {output_qparams(node) for node in (*calls(graph, aten.sigmoid), *calls(graph, aten.cat))}
    assert len(shared | {source.args[1:3] for source in call(graph, aten.cat).args[0]}) == 1
