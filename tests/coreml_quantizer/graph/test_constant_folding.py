"""What a model computes from constants alone is stored, as the float16 number that the program will hold."""

import torch
from helpers.graphs import QDQ, calls, prepare
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

aten = torch.ops.aten
IMAGE = (torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8),)


class Rotary(nn.Module):
    """Multiplies by the cosine of a constant angle, behind a convolution whose weight is computed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1))
        self.frequency = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        angle = torch.outer(torch.arange(8.0), self.frequency)
        return self.conv(x) * torch.cos(angle).expand(4, 8, 8)


def test_a_computed_table_is_stored_in_half_precision() -> None:
    model = Rotary().eval()
    prepared = prepare(model, IMAGE)
    assert not calls(prepared, aten.cos)
    stored = prepared.get_buffer("_folded_constant_0")
    expected = torch.cos(torch.outer(torch.arange(8.0), model.frequency))
    assert torch.equal(stored, expected.half().float())
    assert not torch.equal(stored, expected), "the model itself is not rounded"


def test_views_are_not_copied() -> None:
    prepared = prepare(Rotary().eval(), IMAGE)
    assert len(calls(prepared, aten.expand)) == 1
    assert prepared.get_buffer("_folded_constant_0").numel() == 64


def test_a_computed_weight_is_still_quantized() -> None:
    prepared = prepare(Rotary().eval(), IMAGE)
    prepared(*IMAGE)
    assert calls(convert_pt2e(prepared), QDQ.dequantize_per_channel)


def test_random_values_stay_random() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.spread = nn.Parameter(torch.rand(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + torch.bernoulli(self.spread)

    prepared = prepare(Noisy().eval(), IMAGE)
    assert calls(prepared, aten.bernoulli)


def test_a_small_eps_that_is_added_is_the_stored_one() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y * torch.rsqrt(y.pow(2).mean(1, keepdim=True) + 1e-6)

    (added,) = calls(prepare(Root().eval(), IMAGE), aten.add)
    assert added.args[1] == float(torch.tensor(1e-6).half())
    assert added.args[1] != 1e-6


def test_values_written_in_place_are_not_stored_to_be_written_again() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.table = nn.Parameter(torch.rand(4, 8, 8))

        def forward(self, x: Tensor) -> Tensor:
            doubled = torch.sin(self.table).mul_(2)
            return self.conv(x) + doubled + torch.cos(self.table).add_(x.mean())

    model = InPlace().eval()
    prepared = prepare(model, IMAGE)
    assert not calls(prepared, aten.mul_), "what it makes is stored"
    (written,) = calls(prepared, aten.add_)
    assert written.args[0].target is aten.cos.default, "it is computed anew at every call"
    first, second = prepared(*IMAGE), prepared(*IMAGE)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, model(*IMAGE), rtol=0, atol=2**-9)
    converted = convert_pt2e(prepared)
    assert not torch.export.export(converted, IMAGE).graph_signature.buffers_to_mutate


def test_a_part_that_the_output_never_needs_is_no_obstacle() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.probe = nn.Parameter(torch.rand(1, 4))
            self.weights = nn.Parameter(torch.rand(8, 4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            query, key = self.weights.split(4)
            scores = nn.functional.linear(self.probe, query) @ nn.functional.linear(y.mean((2, 3)), key).t()
            torch.softmax(scores, -1)
            return y

    prepared = prepare(Pooled().eval(), IMAGE)
    prepared(*IMAGE)
    assert calls(convert_pt2e(prepared), QDQ.dequantize_per_channel)


def test_what_no_output_needs_is_dropped_with_its_constants() -> None:
    """Exported programs keep an attention whose result nobody reads; with a constant query, part of it is folded."""

    class Unread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.Linear(4, 4)
            self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
            self.query = nn.Parameter(torch.ones(1, 1, 4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.read(x)
            self.attention(self.query, y, y)
            return y

    inputs = (torch.linspace(-1, 1, 12).reshape(1, 3, 4),)
    model = Unread().eval()
    assert len(calls(torch.export.export(model, inputs).module(), aten.linear)) == 4
    prepared = prepare(model, inputs)
    prepared(*inputs)
    assert len(calls(prepared, aten.linear)) == 1
    assert len(calls(convert_pt2e(prepared), QDQ.dequantize_per_channel)) == 1


def test_a_result_that_only_a_stored_one_read_is_not_stored_itself() -> None:
    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.table = nn.Embedding(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.table(torch.arange(8)).t().mul(0.5)

    prepared = prepare(Bias().eval(), IMAGE)
    stored = [name for name, _ in prepared.named_buffers() if name.startswith("_folded_constant")]
    assert len(stored) == 1
    assert not calls(prepared, aten.embedding)
