"""Operators that must not stay whole, because ExecuTorch fails on them."""

from collections.abc import Callable

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from helpers.lowering import Function
from torch import Tensor

from partitioner import CoreMLPartitioner, host, lower

X = torch.linspace(-1, 1, 12).reshape(3, 4)

PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda x: torch.where(x > 0)[0],
    "columns": lambda x: torch.nonzero(x > 0, as_tuple=True)[1] * 2,
    "a gather": lambda x: x[torch.where(x > 0)].sum(),
    "beside an operation outside Core ML": lambda x: torch.where(torch.asinh(x) > 0)[1],
}


@pytest.mark.parametrize("function", PLACES.values(), ids=PLACES.keys())
def test_where_of_a_mask(function: Callable[[Tensor], Tensor]) -> None:
    program, same = (torch.export.export(Function(function), (X,)) for _ in range(2))
    edge = to_edge_transform_and_lower(same, partitioner=[CoreMLPartitioner()]).to_executorch()
    for buffer in (lower(program).buffer, edge.buffer):
        for x in (X, X.flip(0), X + 0.4):
            torch.testing.assert_close(host.run(buffer, x)[0], function(x), rtol=2e-3, atol=2e-3)
