"""Values of six dimensions of which one is taken apart or reduced."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.lowering import Function, delegates, lower
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioner import CoreMLPartitioner, host
from partitioner import lower as lower_whole
from partitioner.graph.ranks import is_high
from partitioner.rewrites.functional import functional
from partitioner.rewrites.high_ranks import lower_ranks

OPERATIONS: dict[str, Callable[[torch.Tensor, int], Any]] = {
    "unbind": lambda x, dim: x.unbind(dim),
    "select": lambda x, dim: x.select(dim, -1),
    "max": lambda x, dim: tuple(x.max(dim)),
    "amax": lambda x, dim: x.amax(dim - x.dim()),
    "sum": lambda x, dim: x.sum(dim),
    "mean": lambda x, dim: x.mean((dim,)),
}


def _rounded(x: torch.Tensor, scale: float) -> torch.Tensor:
    arguments = (scale, 3, 0, 255, torch.uint8)
    integers = torch.ops.quantized_decomposed.quantize_per_tensor.default(x, *arguments)
    return torch.ops.quantized_decomposed.dequantize_per_tensor.default(integers, *arguments)


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 3), min_size=6, max_size=6),
    order=st.permutations(range(6)),
    later=st.permutations(range(5)),
    dim=st.integers(0, 5),
    operation=st.sampled_from(sorted(OPERATIONS)),
    permuted=st.booleans(),
    rounded=st.booleans(),
)
def test_any_shape_and_order(
    sizes: list[int], order: list[int], later: list[int], dim: int, operation: str, permuted: bool, rounded: bool
) -> None:
    def function(x: torch.Tensor) -> Any:
        high = _rounded(x.reshape(sizes), 0.5) if rounded else x.reshape(sizes)
        high = high.permute(order) if permuted else high
        found = OPERATIONS[operation](_rounded(high, 0.75) if rounded else high, dim)
        first = found if isinstance(found, torch.Tensor) else found[0]
        return found, first.reshape(-1), torch.relu(first).permute(later).reshape(-1)

    x = torch.randn(torch.Size(sizes).numel(), generator=torch.Generator().manual_seed(0)).reshape(-1, sizes[-1]).t()
    program = functional(torch.export.export(Function(function), (x,)))
    lower_ranks(program)
    assert not any(is_high(node) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), function(x), rtol=2.0**-22, atol=2.0**-22)


def test_what_keeps_six_dimensions_is_left_alone() -> None:
    function = Function(lambda x: x.reshape(2, 2, 2, 2, 2, 2).amax(1, keepdim=True))
    x = torch.arange(64.0).reshape(8, 8)
    program = functional(torch.export.export(function, (x,)))
    lower_ranks(program)
    assert any(is_high(node) for node in program.graph.nodes)
    assert torch.equal(program.module()(x), function(x))


def test_a_result_of_the_program_keeps_its_name() -> None:
    function = Function(lambda x: (x.reshape(2, 2, 2, 2, 2, 2).select(2, 1), x * 2))
    x = torch.arange(64.0).reshape(8, 8)
    results = host.run(lower_whole(torch.export.export(function, (x,))).buffer, x)
    for result, expected in zip(results, function(x), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("windows", [1, 3])
def test_attention_in_windows_is_one_partition(windows: int) -> None:
    def attend(x: torch.Tensor) -> torch.Tensor:
        query, key, value = x.reshape(1, 4, windows, 3, 2, 4).permute(3, 0, 4, 2, 1, 5).unbind(0)
        largest = query.reshape(1, 2, windows, 2, 2, 4).amax(3)
        return torch.nn.functional.scaled_dot_product_attention(largest, key, value)

    x = torch.linspace(-2, 2, 96 * windows).reshape(1, 4 * windows, 24)
    partitioner = CoreMLPartitioner()
    manager = lower(Function(attend), (x,), partitioner=partitioner)
    assert partitioner.rejections == ()
    assert len(delegates(manager)) == 1
    (result,) = host.run(manager.to_executorch().buffer, x)
    torch.testing.assert_close(result, attend(x), rtol=2.0**-8, atol=2.0**-8)
