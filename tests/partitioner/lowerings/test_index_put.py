"""Assignment to several places along some dimensions."""

from collections.abc import Callable
from typing import Any

import torch
from helpers.lowering import Function, delegates, lower

from partitioner import host

X = torch.arange(60.0).reshape(3, 4, 5)
I = torch.tensor([0, -1, 2])
J = torch.tensor([[1], [-2]])
ONE = torch.tensor([-1])
PUT: Any = torch.ops.aten.index_put.default

Assign = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
CASES: dict[str, Assign] = {
    "a middle dimension": lambda x, i, j, one: PUT(x, [None, i], x[:, :3] * 2 + 1),
    "the last dimension, one number": lambda x, i, j, one: PUT(x, [None, None, i], torch.tensor(-1.0)),
    "added, some places twice": lambda x, i, j, one: PUT(x, [None, i * 0 + 1], torch.ones(3, 5), True),
    "indices of two shapes": lambda x, i, j, one: PUT(x, [None, i, j], torch.arange(6.0).reshape(2, 3)),
    "dimensions apart": lambda x, i, j, one: PUT(x, [i, None, j], torch.arange(24.0).reshape(2, 3, 4)),
    "every dimension": lambda x, i, j, one: PUT(x, [i, j, one], torch.tensor([5.0])),
    "one place from the end": lambda x, i, j, one: PUT(x, [None, one], x[:, :1] * 2 + 1),
    "a scalar place": lambda x, i, j, one: PUT(x, [None, torch.tensor(-2)], torch.ones(3, 5)),
    "a scalar and several": lambda x, i, j, one: PUT(x, [torch.tensor(-1), i], torch.ones(3, 5)),
    "index_copy": lambda x, i, j, one: x.index_copy(1, i.abs(), x[:, :3] * 2),
    "index_fill": lambda x, i, j, one: x.index_fill(2, i.abs(), -1.0),
    "index_add": lambda x, i, j, one: x.index_add(2, i.abs(), x[:, :, :3]),
    "integers": lambda x, i, j, one: PUT(x.int(), [None, i], torch.tensor(-7, dtype=torch.int32)).float(),
}


def test_places_of_assignment() -> None:
    def every(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(assign(*inputs) for assign in CASES.values())

    inputs = (X, I, J, ONE)
    manager = lower(Function(every), inputs)
    assert len(delegates(manager)) == 1
    results = host.run(manager.to_executorch().buffer, *inputs)
    for name, result, expected in zip(CASES, results, every(*inputs), strict=True):
        assert torch.equal(result, expected), name


def test_a_scalar_index_that_is_an_input() -> None:
    function = Function(lambda x, place: PUT(x, [None, place], torch.ones(3, 5)))
    inputs = (X, torch.tensor(-2))
    (result,) = host.run(lower(function, inputs).to_executorch().buffer, *inputs)
    assert torch.equal(result, function(*inputs))
