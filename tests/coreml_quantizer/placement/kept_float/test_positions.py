"""Coordinates, angles and running sums stay in floating point."""

import pytest
import torch
from helpers.models import signal_to_noise
from torch import Tensor, nn
from torch.nn import functional as F
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import CoreMLQuantizer, presets


def grid(size: int) -> Tensor:
    line = torch.linspace(-1, 1, size)
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)[None]


def image(size: int) -> Tensor:
    line = torch.linspace(0, 12, size)
    return (torch.sin(line[:, None] + torch.arange(3)[:, None, None]) + torch.cos(1.7 * line[None, :]))[None]


class Warp(nn.Module):
    """A flow, computed by a convolution, that moves pixels."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.flow = nn.Conv2d(3, 2, 3, padding=1)
        self.register_buffer("grid", grid(size))

    def forward(self, x: Tensor) -> Tensor:
        flow = self.flow(x).permute(0, 2, 3, 1).tanh()
        return F.grid_sample(x, self.grid + flow * 0.1, align_corners=True)


class Upsampled(Warp):
    """A flow of half the size."""

    def forward(self, x: Tensor) -> Tensor:
        flow = F.interpolate(self.flow(x)[..., ::2, ::2], scale_factor=2, mode="bilinear")
        return F.grid_sample(x, self.grid + flow.permute(0, 2, 3, 1) * 0.1, align_corners=True)


class Transformer(nn.Module):
    """A spatial transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 6)
        self.head.weight.data *= 0.1
        self.head.bias.data = torch.tensor([1.0, 0, 0, 0, 1, 0])

    def forward(self, x: Tensor) -> Tensor:
        theta = self.head(self.features(x).mean((2, 3))).view(-1, 2, 3)
        return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)


class Boxes(nn.Module):
    """Distances from the anchors of a detector to the edges of boxes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 4, 3, padding=1)
        line = torch.arange(size) + 0.5
        self.register_buffer("anchors", torch.stack(torch.meshgrid(line, line, indexing="ij"))[None])

    def forward(self, x: Tensor) -> Tensor:
        distances = self.head(x).relu()
        return torch.cat([self.anchors - distances[:, :2], self.anchors + distances[:, 2:]], 1) * 8


MODELS = {
    **{f"a flow of {size} pixels": (Warp, size) for size in (16, 64, 256)},
    "a flow that is made larger": (Upsampled, 64),
    "an affine transform": (lambda size: Transformer(), 64),
    "boxes": (Boxes, 64),
}


@pytest.mark.parametrize(("make", "size"), MODELS.values(), ids=MODELS.keys())
def test_positions_keep_their_digits(make, size: int) -> None:
    torch.manual_seed(0)
    model, x = make(size).eval(), image(size)
    prepared = prepare_pt2e(torch.export.export(model, (x,)).module(), CoreMLQuantizer(presets.w8a8()))
    prepared(x)
    assert signal_to_noise(model(x), convert_pt2e(prepared)(x)) > 39


READERS = {
    "sine": torch.sin,
    "cosine": lambda x: torch.cos(x * 3 + 1),
    "angle": lambda x: torch.atan2(x[:, :4], x[:, 4:]).repeat(1, 2),
    "running sum": lambda x: x.sigmoid().cumsum(1),
    "logit": lambda x: torch.logit(x.sigmoid()),
}


class Between(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.function, self.second = nn.Linear(8, 8), function, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x)))


def dequantized(model: nn.Module, x: Tensor) -> list[str]:
    prepared = prepare_pt2e(torch.export.export(model.eval(), (x,)).module(), CoreMLQuantizer(presets.w8a8()))
    prepared(x)
    nodes = convert_pt2e(prepared).graph.nodes
    quantized = [node for node in nodes if "quantize_per_tensor" in str(node.target) and "dequ" not in str(node.target)]
    return [str(node.args[0].target) for node in quantized]


@pytest.mark.parametrize("function", READERS.values(), ids=READERS.keys())
def test_what_they_are_computed_from_is_float_and_the_layers_are_quantized(function) -> None:
    quantized = dequantized(Between(function), torch.randn(4, 8))
    assert quantized.count("aten.linear.default") == 1  # the last one; the first makes the positions
    assert "aten.sigmoid.default" not in quantized


@pytest.mark.parametrize(
    "constant", [torch.randn(8), torch.ones(8), torch.tensor([0.0, 1, 3, 4, 6, 7, 9, 10]), torch.randn(4, 8) * 0.02]
)
def test_other_constants_are_no_grids(constant: Tensor) -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("constant", constant)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.constant

    assert "aten.add.Tensor" in dequantized(Between(Added()), torch.randn(4, 8))
