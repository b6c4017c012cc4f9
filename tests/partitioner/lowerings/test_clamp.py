"""Clamps to limits of every kind: the numbers of PyTorch, which lets the upper limit win."""

import math

import coremltools as ct
import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from helpers.lowering import Function
from torch import Tensor
from torch.nn import functional as F

from partitioner import CoreMLBackend, CoreMLPartitioner, host
from partitioner import lower as lower_whole

X = torch.linspace(-3, 3, 24).reshape(2, 3, 4).half().float()
INTEGERS = torch.arange(-12, 12, dtype=torch.int32).reshape(2, 3, 4)
LOW, HIGH = torch.tensor(1.0), torch.tensor(-1.0)
LOWS = torch.tensor([[1.0], [-1], [0]])
HIGHS = torch.tensor([-1.0, 1, 0, 2])

FLOATS = {
    "tensors, crossed": lambda x: x.clamp(LOW, HIGH),
    "tensors, some crossed": lambda x: x.clamp(LOWS, HIGHS),
    "vectors, crossed": lambda x: x.clip(HIGHS + 1, HIGHS),
    "computed, crossed": lambda x: x.clamp(x.abs(), -x.abs()),
    "computed low, constant high": lambda x: x.clamp(x.abs() + 1, HIGH),
    "constant low, computed high": lambda x: torch.clip(x, LOW, x.sin() - 1),
    "larger than the input": lambda x: x[0].clamp(LOWS + x * 0, HIGHS),
    "numbers, crossed": lambda x: x.clamp(1, -1) + x * 0,
    "floats, crossed": lambda x: torch.clip(x, 0.5, -0.5) + x * 0,
    "zero above": lambda x: x.clamp(0, -1.5),
    "equal": lambda x: x.clamp(0.5, 0.5),
    "in order": lambda x: x.clamp(-1, 0.5) + x.clip(torch.tensor(-0.5), torch.tensor(2.5)),
    "one limit": lambda x: x.clamp(min=LOWS) + x.clamp(max=HIGHS) + torch.clip(x, None, 0.25) + torch.clip(x, -0.25),
    "clamp_min and clamp_max": lambda x: x.clamp_min(LOW).clamp_max(HIGH) + x.clamp_max(HIGHS).clamp_min(LOWS),
    "clamp_min and clamp_max of numbers": lambda x: x.clamp_min(2).clamp_max(-1) + x.clamp_max(-1).clamp_min(2),
    "infinite and crossed": lambda x: x.clamp(math.inf, 2.0) + x.clamp(-2.0, math.inf),
    "integer limits": lambda x: x.clamp(torch.tensor(1), torch.tensor(-1)) + x,
    "in place": lambda x: (x * 1).clamp_(LOW, HIGH) + (x * 1).clip_(-1, 2),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 2) + F.relu6(x) + F.hardtanh(x),
}
WHOLE = {
    "numbers": lambda x: x.clamp(-3, 5),
    "numbers, crossed": lambda x: x.clamp(5, -3) + x * 0,
    "tensors, crossed": lambda x: x.clamp(torch.tensor(5, dtype=torch.int32), torch.tensor(-3, dtype=torch.int32)),
    "computed, crossed": lambda x: x.clamp(x * x, -x * x),
    "one limit": lambda x: x.clamp(min=2) + x.clamp(max=-2),
    "fractions": lambda x: x.clamp(-2.5, 3.5),
    "fractions, crossed": lambda x: x.clamp(3.5, -2.5) + x * 0,
}


def _every(cases) -> Function:
    return Function(lambda x: tuple(case(x) for case in cases.values()))


@pytest.fixture(scope="module", params=["whole", "in parts"])
def run(request):
    """Returns a function that lowers a program one of the two ways and runs it."""

    def lowered(model: Function, x: Tensor, precision: ct.precision, policy: str) -> list[Tensor]:
        specs = CoreMLBackend.generate_compile_specs(compute_precision=precision)
        program = torch.export.export(model, (x,))
        if request.param == "whole":
            return host.run(lower_whole(program, compile_specs=specs).buffer, x, policy=policy)
        manager = to_edge_transform_and_lower(program, partitioner=[CoreMLPartitioner(compile_specs=specs)])
        return host.run(manager.to_executorch().buffer, x, policy=policy)

    return lowered


@pytest.mark.parametrize(
    ("cases", "x", "precision", "policy"),
    [
        pytest.param(FLOATS, X, ct.precision.FLOAT32, "float32", id="float32"),
        pytest.param(FLOATS, X, ct.precision.FLOAT16, "storage16", id="float16"),
        pytest.param(WHOLE, INTEGERS, ct.precision.FLOAT16, "storage16", id="int32"),
    ],
)
def test_the_upper_limit_wins(run, cases, x: Tensor, precision: ct.precision, policy: str) -> None:
    results = run(_every(cases), x, precision, policy)
    wrong = {
        name: result
        for (name, case), result in zip(cases.items(), results, strict=True)
        if result.dtype != case(x).dtype or not torch.allclose(result, case(x), rtol=2.0**-9, atol=2.0**-9)
    }
    assert wrong == {}
