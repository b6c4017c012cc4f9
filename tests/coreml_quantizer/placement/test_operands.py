"""Where quantize and dequantize stand around additions and products of activations."""

import pytest
import torch
from helpers.graphs import IMAGE, QDQ, ROWS, call, calls, input_qparams, is_dequantized, output_qparams, quantize
from torch import Tensor, nn

from coreml_quantizer.placement.decisions import decisions_of

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_residual_add_has_both_inputs_quantized_and_fuses_relu() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.conv(x) + x)

    graph = quantize(Residual(), IMAGE)
    add = call(graph, aten.add)
    assert [is_dequantized(operand) for operand in add.args] == [True, True]
    assert list(add.users) == [call(graph, aten.relu)]
    assert output_qparams(call(graph, aten.relu))[1] == 0
    # The model's input is read twice but observed once.
    assert input_qparams(add, 1) == input_qparams(call(graph, aten.conv2d))


def test_a_sum_that_a_norm_reads_has_quantized_inputs_and_a_float_output() -> None:
    class PreNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.norm = nn.LayerNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x) + x
            return y + self.c(self.norm(self.b(x) + y))

    graph = quantize(PreNorm(), ROWS)
    first, second, last = calls(graph, aten.add)
    for add in (first, second, last):
        assert [is_dequantized(operand) for operand in add.args] == [True, True]
    assert list(second.users) == [call(graph, aten.layer_norm)]
    output_qparams(first)
    output_qparams(last)


@pytest.mark.parametrize(("activation", "zero_point"), [(nn.ReLU(), 0), (nn.SiLU(), 128)])
def test_add_is_affine_only_when_all_its_inputs_are(activation: nn.Module, zero_point: int) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
            self.second = nn.Sequential(nn.Linear(6, 4), activation)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) + self.second(x)

    assert output_qparams(call(quantize(Sum(), ROWS), aten.add))[1] == zero_point


@pytest.mark.parametrize("operator", [torch.add, torch.sub, torch.mul])
def test_an_operator_on_one_tensor_twice_and_on_a_scalar(operator: object) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return operator(operator(y, y), 3.0)  # type: ignore[operator]

    graph = quantize(Twice(), ROWS)
    both, scalar = calls(graph, getattr(aten, operator.__name__))  # type: ignore[attr-defined]
    assert input_qparams(both, 0) == input_qparams(both, 1) == output_qparams(call(graph, aten.linear))
    assert input_qparams(scalar) == output_qparams(both)
    output_qparams(scalar)


def test_an_operator_whose_operands_are_float_stays_float() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (x + y) * 2

    graph = quantize(Sum(), (*ROWS, *ROWS))
    assert not calls(graph, QDQ.quantize_per_tensor)
    assert {decision.reason for decision in decisions_of(graph)} == {
        "none of its operands is quantized, so eight bits would cost accuracy and save nothing"
    }


def test_a_chain_of_constants_is_one_block_with_its_activation() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4)
            self.scale = nn.Parameter(torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.linear(x) * self.scale + 0.5 - self.scale)

    graph = quantize(Chain(), ROWS)
    mul, add, sub, relu = (call(graph, op) for op in (aten.mul, aten.add, aten.sub, aten.relu))
    assert is_dequantized(mul.args[0])
    assert [list(node.users) for node in (mul, add, sub)] == [[add], [sub], [relu]]
    assert output_qparams(relu)[1] == 0
