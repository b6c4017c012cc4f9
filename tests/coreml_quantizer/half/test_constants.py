"""Constants that stay in floating point are what Core ML stores: float16 numbers."""

import copy

import pytest
import torch
from helpers.graphs import IMAGE, call, calls, prepare
from torch import Tensor, nn
from torch.nn import functional as F
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from coreml_quantizer import CoreMLQuantizer
from coreml_quantizer.half.rounding import rounded_to_half

aten = torch.ops.aten


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.register_buffer("mask", torch.full((1,), torch.finfo(torch.float32).min))
        self.register_buffer("eps", torch.full((1,), 1e-12))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)) * self.scale * 0.35355339 + self.eps
        return torch.maximum(y, self.mask)


def test_float_constants_become_half_and_the_model_keeps_its_own() -> None:
    model = Model().eval()
    before = copy.deepcopy(model.state_dict())
    prepared = prepare(model, IMAGE)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} of the user's model was changed"
    bias, scale = prepared.get_parameter("conv.bias"), prepared.get_parameter("scale")
    assert torch.equal(bias, bias.half().float())
    assert torch.equal(scale, scale.half().float())
    torch.testing.assert_close(scale, model.scale, rtol=2**-11, atol=0)
    factor = calls(prepared, torch.ops.aten.mul)[1].args[1]
    assert factor == float(torch.tensor(0.35355339).half())


def test_quantized_weights_keep_their_precision() -> None:
    model = nn.Conv2d(3, 4, 3)
    prepared = prepare(model, IMAGE)
    assert torch.equal(prepared.get_parameter("weight"), model.weight)


class Computed(nn.Module):
    """A weight that is computed from parameters at every call, and read through a view."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.direction = nn.Parameter(torch.randn(4, 8))
        self.length = nn.Parameter(torch.rand(4, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (nn.functional.normalize(self.direction) * self.length * 0.3).t()


def test_what_a_quantized_weight_is_computed_from_keeps_its_precision() -> None:
    model = Computed()
    quantizer = CoreMLQuantizer()
    prepared = prepare_pt2e(torch.export.export(model, IMAGE).module(), quantizer)
    assert torch.equal(prepared.get_parameter("direction"), model.direction)
    assert torch.equal(prepared.get_parameter("length"), model.length)
    report = quantizer.report(prepared).to_dict()
    (product,) = (found for found in report["operators"] if found["op"] == "aten.matmul")
    assert set(product["weights"]) == {"direction", "length"}


def test_what_half_cannot_hold_stays() -> None:
    prepared = prepare(Model(), IMAGE)
    assert torch.equal(prepared.get_buffer("mask"), torch.full((1,), torch.finfo(torch.float32).min))
    assert torch.equal(prepared.get_buffer("eps"), torch.full((1,), 1e-12))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 3e-9], [1.0, 0.0]),  # negligible beside its neighbour
        ([3e-9, 2e-9], [3e-9, 2e-9]),  # everything there is
        ([1e-5, 1.0], [float(torch.tensor(1e-5).half()), 1.0]),
        ([1e6, 1.0], [1e6, 1.0]),
        ([], []),
    ],
)
def test_rounding_is_judged_beside_the_largest_element(values: list[float], expected: list[float]) -> None:
    assert torch.equal(rounded_to_half(torch.tensor(values)), torch.tensor(expected))


def test_a_bias_may_vanish() -> None:
    model = nn.Conv2d(3, 4, 3)
    nn.init.constant_(model.bias, 1e-14)
    assert torch.equal(prepare(model, IMAGE).get_parameter("bias"), torch.zeros(4))


@pytest.mark.parametrize(("eps", "expected"), [(1e-5, float(torch.tensor(1e-5).half())), (1e-12, 2.0**-24)])
def test_the_eps_of_a_norm_is_the_stored_one(eps: float, expected: float) -> None:
    prepared = prepare(nn.LayerNorm(8, eps=eps), IMAGE)
    (norm,) = calls(prepared, torch.ops.aten.layer_norm)
    assert norm.args[4] == expected


class Standardized(nn.Module):
    """Images as most vision models take them: the mean is subtracted, then each channel divided by its deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]))
        self.register_buffer("zero", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        y = (x - self.mean.view(-1, 1, 1)) / self.deviation.view(-1, 1, 1)
        return torch.where(x > 2, x / self.zero, y)


def test_division_by_a_constant_tensor_is_the_product_that_core_ml_computes() -> None:
    model = Standardized()
    prepared = prepare(model, IMAGE)
    (product,) = calls(prepared, torch.ops.aten.mul)
    exact = 1 / model.deviation.double().view(-1, 1, 1)
    assert torch.equal(prepared.get_buffer(product.args[1].target), exact.half().float())
    (undefined,) = calls(prepared, torch.ops.aten.div)
    assert undefined.args[1].target == "zero"
    torch.testing.assert_close(prepared(*IMAGE), model(*IMAGE), rtol=2**-10, atol=2**-10)


class Divided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2.449489742783178 / 4


def test_division_by_a_scalar_is_the_product_that_core_ml_computes() -> None:
    prepared = prepare(Divided(), IMAGE)
    assert not calls(prepared, torch.ops.aten.div)
    first, second = calls(prepared, torch.ops.aten.mul)
    assert first.args[1] == float(torch.tensor(1 / 2.449489742783178).half())
    assert second.args[1] == 0.25
    torch.testing.assert_close(prepared(*IMAGE), Divided()(*IMAGE), rtol=2**-11, atol=0)


NORMS = {
    "layer_norm": (lambda x: F.layer_norm(x, (8,)), aten.layer_norm, 4),
    "layer_norm with its eps": (lambda x: F.layer_norm(x, (8,), eps=1e-6), aten.layer_norm, 4),
    "group_norm": (lambda x: F.group_norm(x, 2), aten.group_norm, 4),
    "tiny": (lambda x: F.layer_norm(x, (8,), eps=1e-12), aten.layer_norm, 4),
}


@pytest.mark.parametrize(("function", "op", "position"), NORMS.values(), ids=NORMS.keys())
def test_an_eps_is_one_of_float16_also_where_the_model_names_none(function, op, position: int) -> None:
    class Norm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    eps = call(prepare(Norm(), (torch.randn(2, 8),)), op).args[position]
    assert eps == float(torch.tensor(eps).half())
    assert eps >= 2.0**-24


def test_attention_names_the_scale_that_it_uses() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    x = torch.randn(1, 2, 4, 24)
    node = call(prepare(Attention(), (x,)), aten.scaled_dot_product_attention)
    assert node.kwargs["scale"] == float(torch.tensor(24**-0.5).half())
