"""Sizes that operations on both sides of a partition's edge need."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from helpers.lowering import Function
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from partitioner import CoreMLPartitioner, host, lower

SIZES = (8, 31, 48)


def check(model: nn.Module, axis: int, make: Callable[[int], Tensor], **options: Any) -> None:
    """Compares both ways of lowering with PyTorch at several sizes of one axis; asinh stays outside Core ML."""
    wrapped = Function(model)
    program = torch.export.export(wrapped, (make(20),), dynamic_shapes=(({axis: Dim("size", min=8, max=48)},),))
    edge = to_edge_transform_and_lower(program, partitioner=[CoreMLPartitioner(**options)])
    for buffer in (lower(program, **options).buffer, edge.to_executorch().buffer):
        for size in SIZES:
            x = make(size)
            with torch.no_grad():
                expected = model(x)
            (result,) = host.run(buffer, x)
            torch.testing.assert_close(result, expected, rtol=3e-3, atol=3e-3)


class Convolutions(nn.Module):
    def __init__(self, residual: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv1d(3, 4, 3), nn.Conv1d(4, 3, 2)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = torch.asinh(self.first(x))
        return torch.cat([self.second(y), y[:, :3] * x[:, :, 2:]], 2) if self.residual else self.second(y)


@pytest.mark.parametrize("on_error", ["raise", "fallback"])
@pytest.mark.parametrize("residual", [False, True])
def test_a_partition_begins_with_an_expression_of_a_size(residual: bool, on_error: str) -> None:
    check(Convolutions(residual).eval(), 2, lambda size: torch.linspace(-1, 1, 3 * size).reshape(1, 3, size))


def attention(x: Tensor) -> Tensor:
    for _ in range(2):
        heads = torch.asinh(x).view(1, x.shape[1], 2, 4).transpose(1, 2)
        x = F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).reshape(1, -1, 8)
    return x


def test_two_partitions_need_one_size() -> None:
    check(attention, 1, lambda size: torch.linspace(-1, 1, 8 * size).reshape(1, size, 8))  # type: ignore[arg-type]


def scaled(x: Tensor) -> Tensor:
    inside = torch.softmax(x * x.shape[1] / 48, 1)
    return torch.softmax(torch.asinh(inside) * x.shape[1], 1) + torch.arange(x.shape[1]).asinh() / 48


def test_both_sides_need_a_size() -> None:
    check(scaled, 1, lambda size: torch.linspace(-1, 1, 2 * size).reshape(2, size))  # type: ignore[arg-type]


def test_a_size_is_returned() -> None:
    x = torch.ones(2, 20)
    model = Function(lambda x: (x * 2, x.shape[1]))
    program = torch.export.export(model, (x,), dynamic_shapes=(({1: Dim("size", min=4, max=48)},),))
    doubled, size = host.run(lower(program).buffer, torch.ones(2, 31))
    assert torch.equal(doubled, torch.full((2, 31), 2.0))
    assert int(size) == 31
