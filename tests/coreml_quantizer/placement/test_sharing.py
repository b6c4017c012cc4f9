"""Which operators share scale and zero point with their inputs."""

import pytest
import torch
from helpers.graphs import IMAGE, ROWS, call, calls, input_qparams, output_qparams, quantize
from torch import Tensor, nn

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("layer", "op"),
    [
        (nn.MaxPool2d(2), aten.max_pool2d),
        (nn.AvgPool2d(2), aten.avg_pool2d),
        (nn.AdaptiveAvgPool2d(1), aten.adaptive_avg_pool2d),
        (nn.Flatten(), aten.flatten),
        (nn.Dropout(), aten.dropout),
        (nn.Upsample(scale_factor=2), aten.upsample_nearest2d),
    ],
    ids=lambda value: str(value),
)
def test_operators_that_keep_values_share_the_qparams_of_their_input(layer: nn.Module, op: object) -> None:
    graph = quantize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), layer), IMAGE)
    node = call(graph, op)
    assert input_qparams(node) == output_qparams(node) == output_qparams(call(graph, aten.relu))


@pytest.mark.parametrize(
    ("mode", "value", "shares"),
    [("constant", 0.0, True), ("constant", None, True), ("reflect", None, True), ("constant", 1.0, False)],
)
def test_padding_with_zeros_or_copies_shares_the_qparams_of_its_input(
    mode: str, value: float | None, shares: bool
) -> None:
    class Pad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(nn.functional.pad(self.first(x).relu(), (1, 1, 1, 1), mode, value))

    graph = quantize(Pad(), IMAGE)
    pad = call(graph, aten.pad)
    relu = output_qparams(call(graph, aten.relu))
    assert input_qparams(pad) == relu
    assert (output_qparams(pad) == relu) is shares


def test_mean_reshape_permute_transpose_and_slice_share_too() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).permute(0, 2, 3, 1)[:, 1:].transpose(1, 2).reshape(2, 8, -1).mean(1)

    graph = quantize(Views(), IMAGE)
    expected = output_qparams(call(graph, aten.conv2d))
    for op in (aten.permute, aten.slice, aten.transpose, aten.reshape, aten.mean):
        for node in calls(graph, op):
            assert output_qparams(node) == expected


@pytest.mark.parametrize("parts", ["split", "chunk", "unbind"])
def test_the_parts_of_a_split_share_and_may_be_stacked_again(parts: str) -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 4), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).reshape(4, 2, 2)
            if parts == "unbind":
                return self.second(torch.stack(y.unbind(1)))
            left, right = y.split(1, 1) if parts == "split" else y.chunk(2, 1)
            return self.second(torch.cat([right, left], 1))

    graph = quantize(Parts(), ROWS)
    expected = output_qparams(call(graph, aten.reshape))
    join = call(graph, aten.stack if parts == "unbind" else aten.cat)
    assert {(source.args[1], source.args[2]) for source in join.args[0]} == {expected}
    assert output_qparams(join) == expected


def test_cat_gives_all_its_inputs_one_scale() -> None:
    class Cat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small = nn.Linear(6, 4)
            self.large = nn.Linear(6, 4)
            self.token = nn.Parameter(torch.ones(1, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.token, self.small(x).relu().reshape(4, 4), 100 * self.large(x)])

    graph = quantize(Cat(), ROWS)
    cat = call(graph, aten.cat)
    scales = {(source.args[1], source.args[2]) for source in cat.args[0]}
    assert scales == {output_qparams(cat)}
    assert scales == {output_qparams(call(graph, aten.relu))} == {output_qparams(call(graph, aten.mul))}
