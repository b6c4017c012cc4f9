"""Where quantize and dequantize stand around layers with weights, after prepare, calibrate and convert."""

import pytest
import torch
from helpers.graphs import (
    IMAGE,
    QDQ,
    ROWS,
    WEIGHT_ONLY,
    call,
    calls,
    is_dequantized,
    is_float_output,
    output_qparams,
    placements,
    prepare,
    quantize,
)
from helpers.models import ARCHITECTURES, build
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from coreml_quantizer.placement.decisions import decisions_of

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("activation", "op", "zero_point"),
    [
        (nn.ReLU(), aten.relu, 0),
        (nn.ReLU(inplace=True), aten.relu_, 0),
        (nn.ReLU6(), aten.hardtanh, 0),
        (nn.Hardtanh(), aten.hardtanh, 128),
        (nn.LeakyReLU(), aten.leaky_relu, 128),
        (nn.ELU(), aten.elu, 128),
        (nn.GELU(), aten.gelu, 128),
        (nn.GELU("tanh"), aten.gelu, 128),
        (nn.SiLU(), aten.silu, 128),
        (nn.Hardswish(), aten.hardswish, 128),
        (nn.Mish(), aten.mish, 128),
        (nn.PReLU(), aten.prelu, 128),
        (nn.Softplus(), aten.softplus, 128),
    ],
    ids=lambda value: str(value),
)
def test_convolution_batch_norm_and_activation_are_one_quantized_block(
    activation: nn.Module, op: object, zero_point: int
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), activation)
    graph = quantize(model, IMAGE)
    convolution = call(graph, aten.conv2d)
    assert not calls(graph, aten.batch_norm)
    assert is_dequantized(convolution.args[0])
    assert convolution.args[1].target is QDQ.dequantize_per_channel.default
    assert list(convolution.users) == [call(graph, op)], "nothing may stand between a convolution and its activation"
    assert output_qparams(call(graph, op))[1] == zero_point


@pytest.mark.parametrize(
    ("layer", "inputs", "op", "axis"),
    [
        (nn.Conv1d(3, 4, 3, padding="same"), (torch.ones(1, 3, 9),), aten.conv1d, 0),
        (nn.Conv2d(4, 4, 3, groups=2, stride=2, padding=1), (torch.ones(1, 4, 8, 8),), aten.conv2d, 0),
        (nn.Conv2d(3, 4, 3, padding="same"), IMAGE, aten.conv2d, 0),
        (nn.Conv3d(1, 2, 2), (torch.ones(1, 1, 3, 3, 3),), aten.conv3d, 0),
        (nn.ConvTranspose2d(3, 5, 2), IMAGE, aten.conv_transpose2d, 1),
        (nn.Linear(6, 4, bias=False), ROWS, aten.linear, 0),
    ],
    ids=["conv1d-same", "conv2d-groups", "conv2d-same", "conv3d", "conv_transpose2d", "linear"],
)
def test_weights_are_int8_per_output_channel(
    layer: nn.Module, inputs: tuple[Tensor, ...], op: object, axis: int
) -> None:
    weight = call(quantize(layer, inputs), op).args[1]
    assert weight.target is QDQ.dequantize_per_channel.default
    assert weight.args[3:] == (axis, -128, 127, torch.int8)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_strict_and_non_strict_exports_are_quantized_alike_and_floats_only(name: str) -> None:
    model, inputs = build(name)
    graphs = [quantize(model, inputs, strict=strict) for strict in (False, True)]
    first, second = (placements(graph) for graph in graphs)
    assert sorted(first) == sorted(second)
    torch.testing.assert_close(graphs[0](*inputs), graphs[1](*inputs))
    quantizers = calls(graphs[0], QDQ.quantize_per_tensor)
    assert quantizers
    assert {node.args[0].meta["val"].dtype for node in quantizers} == {torch.float32}


def test_integers_and_bools_are_left_alone() -> None:
    class Indices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4)

        def forward(self, x: Tensor, i: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.linear(x) + i, (i + 1) * i, b & (i > 0)

    inputs = (*ROWS, torch.arange(4), torch.tensor([True, False, True, False]))
    graph = quantize(Indices(), inputs)
    mixed, whole = calls(graph, aten.add)
    assert is_dequantized(mixed.args[0])
    assert not is_dequantized(mixed.args[1])
    assert not is_dequantized(whole.args[0])
    assert is_float_output(whole)
    assert is_float_output(call(graph, aten.mul))


def test_a_module_called_twice_is_quantized_at_both_calls_with_one_weight() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.linear(x))

    graph = quantize(Twice(), ROWS)
    first, second = calls(graph, aten.linear)
    assert all(is_dequantized(node.args[0]) and is_dequantized(node.args[1]) for node in (first, second))
    assert first.args[1].args[0].target == second.args[1].args[0].target
    output_qparams(first)
    output_qparams(second)


def test_float_operators_are_not_surrounded_by_quantizers() -> None:
    model = nn.Sequential(nn.LayerNorm(6), nn.Softmax(-1), nn.Tanh())
    assert not calls(quantize(model, ROWS), QDQ.quantize_per_tensor)


def test_weight_only_needs_no_calibration_and_quantizes_no_activation() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    graph = convert_pt2e(prepare(model, IMAGE, WEIGHT_ONLY))
    assert not calls(graph, QDQ.quantize_per_tensor)
    weight = call(graph, aten.conv2d).args[1]
    scale = operator_get(graph, weight.args[1].target)
    expected = model[0].weight.detach().abs().amax(dim=(1, 2, 3)) / 127.5
    # Scales are the next float16 number above: at most one unit in its 11-bit significand.
    assert ((scale >= expected) & (scale <= expected * (1 + 2**-10))).all()
    torch.testing.assert_close(graph(*IMAGE), model(*IMAGE), atol=0.05, rtol=0)


def operator_get(graph_module: nn.Module, target: str) -> Tensor:
    value = getattr(graph_module, target)
    assert isinstance(value, Tensor)
    return value


def test_float_weights_with_quantized_activations() -> None:
    graph = quantize(nn.Linear(6, 4), ROWS, {"global_config": {"weight_dtype": "float32"}})
    linear = call(graph, aten.linear)
    assert linear.args[1].op == "get_attr"
    assert is_dequantized(linear.args[0])
    output_qparams(linear)


def test_a_constant_factor_of_a_matrix_product_is_a_weight() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    weight = call(quantize(Product(), ROWS), aten.matmul).args[1]
    assert weight.target is QDQ.dequantize_per_channel.default
    assert weight.args[3] == 1


def test_what_reads_values_that_are_written_in_place_says_so() -> None:
    class Written(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y[:, 0] = 1
            return y @ y.mT

    found = {decision.node: decision.reason for decision in decisions_of(prepare(Written(), (torch.randn(1, 4, 4),)))}
    assert found["mul"].startswith("its value is written in place")
    assert found["matmul"].startswith("what it reads is written in place")
