"""Lowerings that depend on sizes, in programs where these vary: run at the example's sizes and at three others."""

import coremltools as ct
import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from helpers.lowering import Function
from torch import Tensor
from torch.export import Dim
from torch.nn import functional as F

from partitioner import CoreMLBackend, CoreMLPartitioner, host
from partitioner import lower as lower_whole

FLOAT32 = CoreMLBackend.generate_compile_specs(compute_precision=ct.precision.FLOAT32)
EXAMPLE = (4, 20)
SIZES = (EXAMPLE, (7, 50), (2, 9), (3, 64))

CASES = {
    "windows": lambda x: x.unfold(1, 4, 2),
    "windows from the end": lambda x: x.unfold(-1, 8, 1),
    "windows that leave a rest": lambda x: x.unfold(1, 3, 5),
    "windows of another dimension": lambda x: x.unfold(0, 2, 1),
    "windows of a middle dimension": lambda x: torch.stack([x, x + 1], -1).unfold(1, 3, 2),
    "windows of windows": lambda x: x.unfold(1, 6, 1).unfold(-1, 2, 2),
    "variance": lambda x: x.var(),
    "biased variance": lambda x: x.var(unbiased=False),
    "variance with a correction": lambda x: torch.var(x, correction=3),
    "variance of no named dimension": lambda x: torch.var(x, [], correction=1, keepdim=True),
    "variance of rows": lambda x: x.var(1),
    "variance of columns": lambda x: torch.var(x, 0, correction=0, keepdim=True),
    "variance of both": lambda x: x.var((0, 1), keepdim=True),
    "deviation": lambda x: x.std(),
    "deviation of a vector": lambda x: x.flatten().std(),
    "deviation with a correction": lambda x: torch.std(x, (-1,), correction=0.5),
    "variance and mean": lambda x: torch.stack(torch.var_mean(x, 1)),
    "deviation and mean of everything": lambda x: torch.stack(torch.std_mean(x)),
    "where of scalars": lambda x: torch.where(x > 0, 2.0, 1.0),
    "where of a scalar and rows": lambda x: torch.where(x[:1] > 0, x[:, :1], 2.0),
    "where of rows and columns": lambda x: torch.where(x[:1] > 0, x[:, :1] * 1, x[:1]),
    "where of a wide condition": lambda x: torch.where(x > 0, x[:, :1], torch.tensor(3.0)),
    "where of lower rank": lambda x: torch.where(x[0] > 0, x, torch.tensor(3.0)),
    "where by one condition": lambda x: torch.where(x.sum() > 0, x, torch.tensor(2.0)),
    "where of booleans": lambda x: torch.where(x[:1] > 0, x[:, :1] > 0, x > 1).float(),
    "where of integers": lambda x: torch.where(x[:1] > 0, (x > 1).int(), 7).float(),
    "masked": lambda x: x.masked_fill(x[0] > 0, 3.0),
    "filled with a size": lambda x: x.new_full((x.shape[0], 2), x.shape[1]),
    "filled like with a size": lambda x: torch.full_like(x, x.shape[1]),
    "filled with an integer size": lambda x: torch.full_like(x, x.shape[0], dtype=torch.int32).float() / 2,
    "clamped to rows and columns": lambda x: x.clamp(x[:1] + 1, x[:, :1]),
}


def every(x: Tensor) -> tuple[Tensor, ...]:
    return tuple(case(x) for case in CASES.values())


@pytest.fixture(scope="module", params=["whole", "in parts"])
def results(request) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Name of a case -> what the lowered program computes and what torch does, at every size."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(sizes, generator=generator) for sizes in SIZES]
    shapes = (({0: Dim("rows", min=2, max=16), 1: Dim("columns", min=9, max=64)},),)
    program = torch.export.export(Function(every), (inputs[0],), dynamic_shapes=shapes)
    if request.param == "whole":
        buffer = lower_whole(program, compile_specs=FLOAT32).buffer
    else:
        partitioner = CoreMLPartitioner(compile_specs=FLOAT32)
        buffer = to_edge_transform_and_lower(program, partitioner=[partitioner]).to_executorch().buffer
        assert partitioner.rejections == ()
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in CASES}
    for x in inputs:
        for name, result, expected in zip(CASES, host.run(buffer, x), every(x), strict=True):
            found[name].append((result, expected))
    return found


@pytest.mark.parametrize("name", CASES)
def test_sizes_are_those_of_the_input(results, name: str) -> None:
    for result, expected in results[name]:
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", [300, 70001])
def test_counts_beyond_float16(columns: int) -> None:
    """Half precision counts elements no further than 65504."""
    x = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    model = Function(lambda x: torch.stack([x.std(), x.var(1)[0], x.flatten().std()]))
    shapes = (({1: Dim("columns", min=8, max=80000)},),)
    buffer = lower_whole(torch.export.export(model, (x,), dynamic_shapes=shapes)).buffer
    x = torch.randn(1, columns, generator=torch.Generator().manual_seed(1)).half().float()
    (result,) = host.run(buffer, x, policy="storage16")
    torch.testing.assert_close(result, model(x), rtol=2.0**-8, atol=0)


RESAMPLED = {
    "nearest by a whole factor": {"scale_factor": 2.0},
    "nearest by a ratio": {"scale_factor": 0.7},
    "bilinear by a ratio": {"scale_factor": 1.3, "mode": "bilinear"},
}


@pytest.mark.parametrize("options", RESAMPLED.values(), ids=RESAMPLED.keys())
def test_images_of_any_size_are_resampled_by_the_factor(options: dict) -> None:
    model = Function(lambda x: F.interpolate(x, **options))
    shapes = (({2: Dim("height", min=4, max=40), 3: Dim("width", min=4, max=40)},),)
    generator = torch.Generator().manual_seed(0)
    program = torch.export.export(model, (torch.randn(1, 2, 12, 12, generator=generator),), dynamic_shapes=shapes)
    buffer = lower_whole(program, compile_specs=FLOAT32).buffer
    for height, width in ((12, 12), (9, 31), (20, 14), (40, 5)):
        x = torch.randn(1, 2, height, width, generator=generator)
        (result,) = host.run(buffer, x)
        torch.testing.assert_close(result, model(x), rtol=1e-4, atol=1e-4)
