"""Padding of an axis whose size varies, and by amounts that vary."""

from collections.abc import Callable

import coremltools as ct
import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from helpers.lowering import Function
from torch import Tensor
from torch.export import Dim
from torch.nn import functional as F

from partitioner import CoreMLBackend, CoreMLPartitioner, host, lower

SIZES = (1, 5, 20, 31, 48)

VARYING: dict[str, Callable[[Tensor], Tensor]] = {
    "up to a length": lambda x: F.pad(x, (0, 48 - x.shape[-1])),
    "up to a length, with a value": lambda x: F.pad(x, (0, 48 - x.shape[-1]), value=3.0),
    "up to a length, or cropped": lambda x: F.pad(x, (0, 30 - x.shape[-1])),
    "in front": lambda x: F.pad(x, (48 - x.shape[-1], 2)),
    "two axes, one cropped": lambda x: F.pad(x, (48 - x.shape[-1], 2, 1, -1), value=3.0),
    "in the centre": lambda x: F.pad(x, ((48 - x.shape[-1]) // 2, 48 - x.shape[-1] - (48 - x.shape[-1]) // 2)),
    "by the size": lambda x: F.pad(x, (x.shape[-1], 3)),
    "the last value, up to a length": lambda x: F.pad(x, (0, 48 - x.shape[-1]), mode="replicate"),
    "integers": lambda x: F.pad((x > 0).to(torch.int32), (0, 48 - x.shape[-1]), value=100_003),
    "a mask": lambda x: F.pad(x > 0, (0, 48 - x.shape[-1]), value=True),
    "a constant amount": lambda x: F.pad(x, (2, 1), value=3.0),
}
LONGER: dict[str, Callable[[Tensor], Tensor]] = {
    "circular": lambda x: F.pad(x, (3, 2), mode="circular"),
    "circular, cropped on one side": lambda x: F.pad(x, (2, -1), mode="circular"),
    "circular, cropped on both": lambda x: F.pad(x, (-1, -2), mode="circular"),
    "cropped": lambda x: F.pad(x, (-1, -2)),
    "cropped on one side": lambda x: F.pad(x, (-1, 2), value=3.0),
}
CASES = {name: (function, SIZES) for name, function in VARYING.items()}
CASES.update({name: (function, SIZES[1:]) for name, function in LONGER.items()})


def given(size: int) -> Tensor:
    return torch.linspace(-3, 3, 6 * size).reshape(2, 3, size)


def exported(function: Callable[[Tensor], Tensor], lowest: int) -> torch.export.ExportedProgram:
    shapes = (({2: Dim("size", min=lowest, max=48)},),)
    return torch.export.export(Function(function), (given(20),), dynamic_shapes=shapes)


@pytest.mark.parametrize("name", CASES)
def test_padding_of_a_varying_axis(name: str) -> None:
    function, sizes = CASES[name]
    lowered = lower(exported(function, sizes[0]))
    assert lowered.rejections == ()
    for size in sizes:
        (result,) = host.run(lowered.buffer, given(size))
        torch.testing.assert_close(result, function(given(size)), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("target", [ct.target.iOS15, ct.target.iOS16, ct.target.iOS18])
@pytest.mark.parametrize("name", ["up to a length, or cropped", "integers", "circular"])
def test_targets_and_the_other_way(name: str, target: ct.target) -> None:
    function, sizes = CASES[name]
    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=target, compute_precision=ct.precision.FLOAT32
    )
    partitioner = CoreMLPartitioner(compile_specs=specs, lower_full_graph=True)
    buffer = to_edge_transform_and_lower(exported(function, sizes[0]), partitioner=[partitioner]).to_executorch().buffer
    for size in sizes:
        (result,) = host.run(buffer, given(size))
        torch.testing.assert_close(result, function(given(size)), rtol=1e-6, atol=1e-6)
