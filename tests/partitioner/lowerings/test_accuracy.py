"""Operations on the values where a careless formula fails: zero, infinity, very small and very large ones."""

import math

import coremltools as ct
import pytest
import torch
from helpers.lowering import Function, lower, operations
from torch.nn import functional as F

from partitioner import host

# What single precision rounds away in a handful of operations; half precision, where each of them rounds its result.
TOLERANCES = {
    ct.precision.FLOAT32: ("float32", {"rtol": 2.0**-20, "atol": 2.0**-40}),
    ct.precision.FLOAT16: ("storage16", {"rtol": 2.0**-8, "atol": 2.0**-20}),
}

LOGITS = torch.tensor([[0.0, -50, 50, 10], [100, -100, 0, 1], [1000, -1000, 999, 998], [-math.inf, 0, 1, 2]])
ROWS = torch.linspace(-1, 1, 32).reshape(4, 8).half().float()
POINTS = torch.tensor([-3e4, -7, -0.5, -1e-4, 0, 1e-4, 0.5, 7, 3e4]).half().float()
Y, X = (values.flatten().contiguous() for values in torch.meshgrid(POINTS, POINTS, indexing="ij"))
EDGES = torch.tensor([-math.inf, -6e4, -2, -0.0, 0.5, 3, 6e4, math.inf])
LARGE, SIGNED = torch.tensor([2049, 4097, 100003, -2049, -100003]), torch.tensor([7, -7, 91, 2, -91])
TINY = torch.tensor([0.0, 2**-24, 2**-20, 2**-14, 0.25, 1, 6e4, math.inf])

CASES = {
    "rms_norm of small values": (lambda x: F.rms_norm(x, (8,), eps=1e-6), ROWS * 2**-10),
    "rms_norm of large values": (lambda x: F.rms_norm(x, (8,), torch.linspace(1, 2, 8), 1e-6), ROWS * 30000),
    "rms_norm of zeros": (lambda x: F.rms_norm(x, (8,), eps=1e-5), ROWS * torch.tensor([[0.0], [1], [0], [1]])),
    "rms_norm over two dimensions": (lambda x: F.rms_norm(x, (4, 8), eps=1e-3), ROWS * 2**-5),
    "log_softmax": (lambda x: F.log_softmax(x, -1), LOGITS),
    "log_softmax of columns": (lambda x: F.log_softmax(x, 0), LOGITS[:3]),
    "cross entropy": (lambda x: F.cross_entropy(x, torch.tensor([1, 1, 2]), reduction="none"), LOGITS[:3]),
    "negative log likelihood": (lambda x: F.nll_loss(F.log_softmax(x, 1), torch.tensor([1, -100, 2])), LOGITS[:3]),
    "log": (torch.log, TINY),
    "log2": (torch.log2, TINY),
    "log10": (torch.log10, TINY),
    "expm1": (torch.expm1, torch.tensor([-math.inf, -20, -1, -1e-3, -6e-5, 0, 6e-5, 1e-3, 1, 10])),
    "celu": (lambda x: F.celu(x, 0.5), torch.tensor([-20, -1e-3, -6e-5, 0, 6e-5, 1, 10])),
    "clamp below": (lambda x: x.clamp(min=0), EDGES),
    "clamp below at another number": (lambda x: x.clamp(min=0.5), EDGES),
    "clamp above": (lambda x: x.clamp(max=1.5), EDGES),
    "clamp at infinity": (lambda x: x.clamp(-math.inf, math.inf) + x.clamp(-math.inf, 2.5), EDGES[2:]),
    "clamp at tensors": (lambda x: x.clamp(torch.tensor(-1.0), x.abs()), EDGES),
    "clamp of integers": (lambda x: x.clamp(min=2048) + x.clamp(max=5) + x.clamp(-3, 4), LARGE),
    "angles": (torch.atan2, Y, X),
    "floor of integers": (lambda x, y: torch.div(x, y, rounding_mode="floor"), LARGE, SIGNED),
    "truncation of integers": (lambda x, y: torch.div(x, y, rounding_mode="trunc"), LARGE, SIGNED),
    "floor_divide of integers": (lambda x: x // 7, torch.tensor([16777217, 2147483647, -2147483647])),
    "floor of other numbers": (lambda x: torch.div(x, 0.75, rounding_mode="floor"), POINTS[1:-1]),
}


@pytest.fixture(scope="module", params=TOLERANCES, ids=lambda precision: precision.value)
def results(request) -> dict[str, tuple[torch.Tensor, torch.Tensor, dict[str, float]]]:
    """Name of a case -> what the lowered program computes, what torch does, and the tolerance; all are one program."""
    policy, tolerance = TOLERANCES[request.param]
    inputs = [
        tuple(x.half().float() if x.is_floating_point() and policy == "storage16" else x for x in case[1:])
        for case in CASES.values()
    ]

    def every(*flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = iter(flat)
        return tuple(
            case[0](*(next(values) for _ in given)) for case, given in zip(CASES.values(), inputs, strict=True)
        )

    flat = tuple(x for given in inputs for x in given)
    manager = lower(Function(every), flat, compute_precision=request.param)
    found = host.run(manager.to_executorch().buffer, *flat, policy=policy)
    return {
        name: (result, expected, tolerance) for name, result, expected in zip(CASES, found, every(*flat), strict=True)
    }


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_torch(results, name: str) -> None:
    result, expected, tolerance = results[name]
    torch.testing.assert_close(result, expected, **tolerance, equal_nan=True)


@pytest.mark.parametrize("bounds", [{"min": 0.0}, {"min": 1e-6}, {"max": 2.0}], ids=str)
def test_a_limit_on_one_side_is_computed_in_half_precision(bounds: dict[str, float]) -> None:
    x = torch.linspace(-3, 3, 8)
    kinds = [operation.type for operation in operations(lower(Function(lambda x: x.clamp(**bounds)), (x,)))]
    assert kinds[0] == kinds[-1] == "cast"
    assert len(kinds) == 3
