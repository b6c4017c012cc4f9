"""Models in float16 (`model.half()`), whose values meet the float32 numbers that converters write."""

from collections.abc import Callable

import coremltools as ct
import numpy as np
import pytest
import torch
from helpers.lowering import Function, delegates, lower
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import partitioner
from partitioner import CoreMLBackend, host
from partitioner.conversion.declared_half import SMALLEST_HALF, as_half

X = torch.linspace(-2, 2, 32).reshape(1, 2, 4, 4).half()


class Norms(nn.Module):
    """Every norm, and activations with numbers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Hardswish(), nn.GroupNorm(2, 8))
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.LeakyReLU(0.1), nn.RMSNorm(8, eps=1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.instance_norm(self.body(x)).flatten(2).transpose(1, 2)).softmax(-1)


@pytest.mark.parametrize("precision", [ct.precision.FLOAT16, ct.precision.FLOAT32], ids=lambda item: item.value)
def test_a_model_in_half_precision_is_lowered(precision: ct.precision) -> None:
    torch.manual_seed(0)
    model = Norms().eval().half()
    program = torch.export.export(model, (X,))
    specs = CoreMLBackend.generate_compile_specs(compute_precision=precision)
    lowered = partitioner.lower(program, compile_specs=specs)
    assert lowered.rejections == ()
    (result,) = host.run(lowered.buffer, X, policy="float32")
    assert result.dtype == torch.float16
    # The result and the slopes and epsilons are rounded to 11 bits; the results are below 1.
    torch.testing.assert_close(result.float(), model.float()(X.float()).detach(), rtol=0, atol=2.0**-10)


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "logarithms": lambda x: torch.log1p(x.abs()) + torch.log(x.abs()) + torch.expm1(x),
    "roots": lambda x: torch.rsqrt(x.abs()) + torch.reciprocal(x),
    "activations": lambda x: F.elu(x) + F.selu(x) + F.hardsigmoid(x) + F.hardtanh(x) + F.softplus(x, 3, 30),
    "threshold": lambda x: F.threshold(x, 0.3, -7.0),
    "numbers for what is none": lambda x: torch.nan_to_num(x / 0, nan=1.0, posinf=5.0, neginf=-5.0),
    "clamp": lambda x: x.clamp_min(0.5) + x.clamp(-1, 1) + x.clamp_max(0.25),
    "deviations": lambda x: x.var(1) + x.std(-1).unsqueeze(1).mean(),
    "norm": lambda x: x.norm(p=3, dim=(2, 3)) + F.cosine_similarity(x.flatten(2), x.flatten(2).flip(1), -1),
    "grid": lambda x: F.grid_sample(x, x.permute(0, 2, 3, 1) / 2, align_corners=False),
}


def test_operations_with_numbers_of_their_own() -> None:
    def every(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(function(x) for function in FUNCTIONS.values())

    manager = lower(Function(every), (X,))
    assert len(delegates(manager)) == 1
    results = host.run(manager.to_executorch().buffer, X)
    for name, result, expected in zip(FUNCTIONS, results, every(X.float()), strict=True):
        assert result.dtype == torch.float16, name
        torch.testing.assert_close(result.float(), expected, rtol=2.0**-7, atol=2.0**-7, msg=name)


@settings(deadline=None, max_examples=50)
@given(st.floats(width=32, allow_nan=False))
def test_a_number_becomes_zero_or_infinite_only_if_it_has_to(number: float) -> None:
    half = as_half(number)
    assert half.dtype == np.float16
    assert (half == 0) == (number == 0)
    if SMALLEST_HALF <= abs(number) <= 65504:
        assert abs(float(half) - number) <= max(abs(number) * 2.0**-11, SMALLEST_HALF / 2)
    assert np.signbit(half) == np.signbit(np.float32(number))
