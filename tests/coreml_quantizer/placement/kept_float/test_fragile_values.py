"""Values that something is divided by, or whose logarithm is taken, stay in floating point."""

import pytest
import torch
from helpers.graphs import call, is_dequantized, is_float_output, prepare, quantize
from helpers.models import signal_to_noise
from torch import Tensor, nn
from torch.nn import functional as F
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

from coreml_quantizer import CoreMLQuantizer
from coreml_quantizer.placement.decisions import decisions_of
from partitioner import host, lower

aten = torch.ops.aten


class LinearAttention(nn.Module):
    """Attention without softmax: its normalizer is one more column of the values."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query(x).relu(), self.key(x).relu(), F.pad(self.value(x), (0, 1), value=1.0)
        mixed = query @ (key.transpose(-1, -2) @ value)
        return mixed[..., :-1] / (mixed[..., -1:] + 1e-15)


class Spectrum(nn.Module):
    """The logarithm of energies, most of which are far below the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.filters, self.head = nn.Conv1d(4, 8, 3, bias=False), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.log(self.filters(x * x).abs()[..., :16].clamp(min=1e-6)))


def test_a_normalizer_is_never_rounded_to_zero() -> None:
    torch.manual_seed(0)
    model, x = LinearAttention().eval(), torch.randn(1, 32, 8)
    prepared = prepare(model, (x,))
    reasons = {decision.node: decision.reason for decision in decisions_of(prepared)}
    assert "eight bits round what is small to zero" in reasons["matmul_1"]
    assert "eight bits round what is small to zero" in reasons["add"]
    prepared(x)
    converted = convert_pt2e(prepared)
    assert is_float_output(call(converted, aten.div))
    last = [node for node in converted.graph.nodes if node.target is aten.matmul.default][-1]
    assert all(is_dequantized(source) for source in last.args)
    assert is_float_output(last)
    assert signal_to_noise(model(x), converted(x)) > 25
    # Queries that see nothing: zero by next to zero, in the program too.
    x[:, :16] = -10 * model.query.weight.detach().sum(0).sign()
    (result,) = host.run(lower(torch.export.export(converted, (x,))).buffer, x)
    assert torch.isfinite(result).all()


def test_energies_are_not_rounded_in_front_of_a_logarithm() -> None:
    torch.manual_seed(0)
    model, x = Spectrum().eval(), torch.randn(1, 4, 18) * torch.logspace(-2, 0, 18)
    converted = quantize(model, (x,))
    assert is_float_output(call(converted, aten.conv1d))
    assert is_float_output(call(converted, aten.clamp))
    assert is_dequantized(call(converted, aten.linear).args[0])


@pytest.mark.parametrize("divide", [lambda x: 1 / x, torch.reciprocal, torch.rsqrt, torch.log10])
def test_activations_in_front_of_a_pole_stay_float(divide) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(divide(F.softplus(self.first(x))))

    converted = quantize(Model().eval(), (torch.randn(4, 8),))
    assert is_float_output(call(converted, aten.softplus))


def test_it_trains() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = model

        def forward(self, x: Tensor) -> Tensor:
            y = self.block(x).relu() + 0.1
            return x[:, :1, 1:-1, 1:-1] / y

    inputs = (torch.randn(4, 3, 6, 6),)
    prepared = prepare_qat_pt2e(torch.export.export(Gate(), inputs).module(), CoreMLQuantizer())
    prepared(*inputs).sum().backward()
    converted = convert_pt2e(prepared)
    assert torch.isfinite(converted(*inputs)).all()


def test_divisors_that_are_not_tensors_change_nothing() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Third(), nn.Linear(8, 8)).eval()
    converted = quantize(model, (torch.randn(2, 8),))
    assert is_dequantized(call(converted, aten.mul).args[0])


class Third(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 3
