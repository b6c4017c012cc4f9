"""Values that are quantized again on another grid, directly or behind a view."""

import itertools
from collections.abc import Callable

import coremltools as ct
import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the operations
from helpers.lowering import Function, delegates, lower

from partitioner import host

X = torch.linspace(-3, 3, 32).reshape(4, 8)

Grid = tuple[float, int, torch.dtype]
GRIDS: tuple[Grid, ...] = (
    (0.02, 128, torch.uint8),
    (0.02, 0, torch.int8),
    (0.02, 0, torch.uint8),
    (0.03, 128, torch.uint8),
)
VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nothing": lambda x: x,
    "a reshape": lambda x: x.reshape(2, 16),
}


def _rounded(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    scale, zero_point, dtype = grid
    limits = torch.iinfo(dtype)
    arguments = (scale, zero_point, limits.min, limits.max, dtype)
    integers = torch.ops.quantized_decomposed.quantize_per_tensor.default(x, *arguments)
    return torch.ops.quantized_decomposed.dequantize_per_tensor.default(integers, *arguments)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_a_value_is_rounded_on_every_grid_that_it_comes_to(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    def every(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pairs = itertools.product(GRIDS, repeat=2)
        return tuple(
            _rounded(view(_rounded(x + number, first)), second) * 2 for number, (first, second) in enumerate(pairs)
        )

    manager = lower(
        Function(every), (X,), compute_precision=ct.precision.FLOAT32, minimum_deployment_target=ct.target.iOS17
    )
    assert len(delegates(manager)) == 1
    results = host.run(manager.to_executorch().buffer, X, policy="float32")
    pairs = itertools.product(GRIDS, repeat=2)
    for pair, result, expected in zip(pairs, results, every(X), strict=True):
        torch.testing.assert_close(result, expected, rtol=2.0**-22, atol=0, msg=str(pair))
