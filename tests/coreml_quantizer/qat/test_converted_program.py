"""The graph that training ends in and the program that it is lowered to agree to the last step of every result."""

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

from coreml_quantizer import CoreMLQuantizer, LinearQuantizer, presets
from partitioner import host, lower

BATCH = 16


class Convolutions(nn.Module):
    def __init__(self, norm: bool, bias: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, bias=bias)
        self.norm = nn.BatchNorm2d(16) if norm else nn.Identity()
        self.second = nn.Conv2d(16, 24, 3)
        self.head = nn.Linear(24 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.norm(self.first(x)).relu()).relu().flatten(1))


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 32)
        self.batch_norm, self.last = nn.BatchNorm1d(32), nn.Linear(32, 8)
        self.factor = nn.Parameter(torch.randn(32))

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(x)) * self.factor * 0.3 + 0.1)
        return self.last(nn.functional.gelu(self.batch_norm(x)))


MODELS = {
    "conv, norm, conv, linear": (lambda: Convolutions(norm=True, bias=True), (3, 8, 8)),
    "without the norm": (lambda: Convolutions(norm=False, bias=True), (3, 8, 8)),
    "without a bias in front of the norm": (lambda: Convolutions(norm=True, bias=False), (3, 8, 8)),
    "norms and factors": (Layers, (16,)),
}


def trained(model: nn.Module, sizes: tuple[int, ...], by_linear_quantizer: bool) -> nn.Module:
    example = (torch.randn(BATCH, *sizes),)
    if by_linear_quantizer:
        linear_quantizer = LinearQuantizer(model, presets.w8a8())
        prepared = linear_quantizer.prepare(example_inputs=example)
    else:
        graph = torch.export.export(model.train(), example).module()
        prepared = prepare_qat_pt2e(graph, CoreMLQuantizer(presets.w8a8()))
    optimizer = torch.optim.SGD(prepared.parameters(), 0.05)
    for _ in range(30):
        loss = prepared(torch.randn(BATCH, *sizes)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return linear_quantizer.finalize().eval() if by_linear_quantizer else convert_pt2e(prepared)


@pytest.mark.parametrize("by_linear_quantizer", [False, True], ids=["prepare_qat_pt2e", "LinearQuantizer"])
@pytest.mark.parametrize(("make", "sizes"), MODELS.values(), ids=MODELS.keys())
def test_no_result_is_a_step_off(make, sizes: tuple[int, ...], by_linear_quantizer: bool) -> None:
    torch.manual_seed(0)
    converted = trained(make(), sizes, by_linear_quantizer)
    program = lower(torch.export.export(converted, (torch.randn(BATCH, *sizes),)))
    for _ in range(20):
        x = torch.randn(BATCH, *sizes)
        with torch.no_grad():
            expected = converted(x)
        (result,) = host.run(program.buffer, x, policy="float32")
        step = expected.unique().diff().min()
        assert (result - expected).abs().max() < 0.4 * step
