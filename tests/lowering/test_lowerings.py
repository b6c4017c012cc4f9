"""Operations that the converters of Core ML Tools lack or get wrong, and that run with the right numbers."""

import coremltools as ct
import pytest
import torch
from lowering.helpers import delegates, lower
from lowering.test_partitioner import Function
from torch import nn

from partitioner import CoreMLBackend, CoreMLPartitioner, host

FLOAT32 = CoreMLBackend.generate_compile_specs(compute_precision=ct.precision.FLOAT32)
X = torch.linspace(-1, 1, 16).reshape(2, 8)
W = torch.linspace(2, -1, 8)
IMAGE = torch.linspace(-1, 1, 192).reshape(3, 8, 8)


TAKEN = {
    "matrix vector": (lambda x, w: x @ w, X, W),
    "batch vector": (lambda x, w: x @ w, X.reshape(2, 2, 4), W[:4].clone()),
    "vector vector": (lambda x, w: x @ w, X[0].clone(), W),
    "vector matrix": (lambda x, w: w @ x, X.t().contiguous(), W),
    "gather zeros": (lambda x: torch.gather(x, 1, torch.zeros(2, 8, dtype=torch.long)), X),
    "gather ones": (lambda x: torch.gather(x, 1, torch.ones(2, 8, dtype=torch.long)), X),
    "gather ones like": (lambda x: torch.gather(x, 1, torch.ones_like(x, dtype=torch.long)), X),
    "gather full": (lambda x: torch.gather(x, 1, x.new_full((2, 8), 3, dtype=torch.long)), X),
    "scatter zeros": (lambda x: x.scatter(1, torch.zeros(2, 8, dtype=torch.long), x * 0 + 2), X),
    "float zeros": (lambda x: x + torch.zeros(8) + torch.ones(2, 8), X),
    "bool ones": (lambda x: torch.where(torch.ones(2, 8, dtype=torch.bool), x * 2, x), X),
}


@pytest.mark.parametrize(("function", "inputs"), [(row[0], row[1:]) for row in TAKEN.values()], ids=TAKEN.keys())
def test_what_core_ml_tools_fails_on_is_lowered(function, inputs: tuple[torch.Tensor, ...]) -> None:
    partitioner = CoreMLPartitioner(compile_specs=FLOAT32)
    manager = lower(Function(function), inputs, partitioner=partitioner)
    assert len(delegates(manager)) == 1
    assert partitioner.rejections == ()
    (result,) = host.run(manager.to_executorch().buffer, *inputs)
    torch.testing.assert_close(result, function(*inputs), rtol=1e-5, atol=1e-5)


REFUSED = {
    "integer and": (Function(lambda a: ((a > 0).to(torch.int32) & 1).float()), X, "aten.bitwise_and.Scalar"),
    "unbatched avg_pool2d": (nn.AvgPool2d(2), IMAGE, "aten.avg_pool2d.default"),
}


@pytest.mark.parametrize(("model", "x", "refused"), REFUSED.values(), ids=REFUSED.keys())
def test_what_core_ml_cannot_express_stays_outside(model: nn.Module, x: torch.Tensor, refused: str) -> None:
    partitioner = CoreMLPartitioner(compile_specs=FLOAT32)
    torch.manual_seed(0)
    manager = lower(model.eval(), (x,), partitioner=partitioner)
    names = {rejection.op for rejection in partitioner.rejections}
    assert refused in names
    (result,) = host.run(manager.to_executorch().buffer, x)
    torch.testing.assert_close(result, model(x).detach(), rtol=1e-5, atol=1e-5)
