"""Operations whose squares, powers and exponentials float16 cannot hold, although it holds their results."""

import coremltools as ct
import pytest
import torch
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from helpers.lowering import Function
from torch import Tensor
from torch.export import Dim
from torch.nn import functional as F

from partitioner import CoreMLBackend, CoreMLPartitioner, host
from partitioner import lower as lower_whole

COLUMNS = 768
SCALES = {"large": 1000.0, "loud": 300.0, "usual": 1.0, "quiet": 2.0**-8}


def _hand_layer_norm(x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt((x - mean).pow(2).mean(-1, keepdim=True) + 1e-6)


# Results that grow with the input at most as it does, or not at all.
CASES = {
    "cosine_similarity": lambda x: F.cosine_similarity(x, x + x.flip(0), -1),
    "cosine_similarity of pairs": lambda x: F.cosine_similarity(x[:, None], x[None], 2),
    "cosine_similarity to one": lambda x: F.cosine_similarity(x, x[0], -1),
    "logcumsumexp": lambda x: x.logcumsumexp(-1),
    "logcumsumexp of columns": lambda x: x.logcumsumexp(0),
    "logsumexp": lambda x: x.logsumexp(-1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "softplus": lambda x: F.softplus(x, 2.0),
    "logaddexp": lambda x: torch.logaddexp(x, x.flip(0)),
    "third norm": lambda x: x.norm(3, -1),
    "fourth norm": lambda x: torch.linalg.vector_norm(x, 4, dim=(0, 1), keepdim=True),
    "negative norm": lambda x: torch.linalg.vector_norm(x.abs() + x.abs().amax(), -2, dim=1),
    "norm of a fraction": lambda x: torch.linalg.vector_norm(x[:, :64], 1.5, dim=1),
    "normalize by the third norm": lambda x: F.normalize(x, 3.0),
    "normalize": lambda x: F.normalize(x),
    "pairwise_distance": lambda x: F.pairwise_distance(x, x.flip(0)),
    "pairwise_distance by the third power": lambda x: F.pairwise_distance(x, x.flip(0), 3.0, keepdim=True),
    "deviation": lambda x: x.std(-1),
    "deviation of everything": lambda x: x.std(),
    "biased deviation of columns": lambda x: torch.std(x, 0, correction=0, keepdim=True),
    "division by the deviation": lambda x: x / (x.std(-1, keepdim=True) + 1e-5),
    "division by the variance's root": lambda x: x * torch.rsqrt(x.var(-1, keepdim=True) + 1e-6),
    "root of a mean square error": lambda x: F.mse_loss(x, x.flip(0)).sqrt(),
    "group_norm": lambda x: F.group_norm(x[None], 2),
    "layer_norm": lambda x: F.layer_norm(x, (COLUMNS,)),
    "layer norm by hand": _hand_layer_norm,
    "rms_norm": lambda x: F.rms_norm(x, (COLUMNS,), eps=1e-6),
    "rms norm by hand": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "rms norm of products": lambda x: x / (x * x).mean((0, 1), keepdim=True).add(1e-6).sqrt(),
    "norm by hand": lambda x: (x * x).sum(-1).sqrt(),
    "norm of squares by hand": lambda x: x.square().sum(0, keepdim=True) ** 0.5,
    "inverse of a norm by hand": lambda x: x * x.square().sum(1, keepdim=True).rsqrt(),
}
# Results that grow as the square of the input: of few large elements among small ones.
SQUARES = {
    "variance": lambda x: x.var(-1),
    "variance of everything": lambda x: x.var(correction=3),
    "mean square": lambda x: x.pow(2).mean(-1),
    "sum of squares": lambda x: x.square().sum(),
    "mean square error": lambda x: F.mse_loss(x, x * 0.5),
}


def _lowered(function, x: Tensor, way: str, columns: Dim | None = None) -> bytes:
    shapes = None if columns is None else (({1: columns},),)
    program = torch.export.export(Function(function), (x,), dynamic_shapes=shapes)
    if way == "whole":
        lowered = lower_whole(program)
        assert lowered.rejections == ()
        return lowered.buffer
    partitioner = CoreMLPartitioner()
    config = EdgeCompileConfig(_core_aten_ops_exception_list=[torch.ops.aten.logcumsumexp.default])
    manager = to_edge_transform_and_lower(program, partitioner=[partitioner], compile_config=config)
    assert partitioner.rejections == ()
    return manager.to_executorch().buffer


@pytest.fixture(scope="module", params=["whole", "in parts"])
def results(request) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """Scale and case -> what the lowered program computes in half precision, and what torch does."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, COLUMNS, generator=generator)
    buffer = _lowered(lambda x: tuple(case(x) for case in CASES.values()), x, request.param)
    found = {}
    for scale, factor in SCALES.items():
        scaled = (x * factor).half().float()
        for (name, case), result in zip(CASES.items(), host.run(buffer, scaled, policy="storage16"), strict=True):
            found[scale, name] = (result, case(scaled.double()).float())
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scale", SCALES)
def test_results_that_float16_holds_are_right(results, scale: str, name: str) -> None:
    result, expected = results[scale, name]
    error = (result - expected).norm() / expected.norm()
    assert error < 2.0**-8


@pytest.mark.parametrize("way", ["whole", "in parts"])
def test_few_large_elements_do_not_make_a_mean_square_infinite(way: str) -> None:
    x = torch.full((4, COLUMNS), 0.5)
    x[:, 5] = 200
    x[1, 7] = -210
    buffer = _lowered(lambda x: tuple(case(x) for case in SQUARES.values()), x, way)
    louder = x.clone()
    louder[0, 5] = 1000
    for given in (x, louder):
        for (name, case), result in zip(SQUARES.items(), host.run(buffer, given, policy="storage16"), strict=True):
            expected = case(given)
            held = expected.abs() < 65000
            torch.testing.assert_close(result[held], expected[held], rtol=2.0**-7, atol=0, msg=name)


@pytest.mark.parametrize("columns", [40, 500, 3000])
def test_sizes_that_vary(columns: int) -> None:
    chosen = ("deviation", "rms norm by hand", "norm by hand", "logcumsumexp", "third norm", "cosine_similarity")

    def function(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(CASES[name](x) for name in chosen)

    generator = torch.Generator().manual_seed(0)
    buffer = _lowered(function, torch.randn(4, 64, generator=generator), "whole", Dim("columns", min=8, max=4096))
    for factor in SCALES.values():
        x = (torch.randn(4, columns, generator=generator) * factor).half().float()
        for name, result, expected in zip(chosen, host.run(buffer, x, policy="storage16"), function(x), strict=True):
            assert (result - expected).norm() / expected.norm() < 2.0**-8, (name, factor)


INFINITE = torch.tensor([[-torch.inf, -torch.inf, 3, -1e4, 90], [1e4, -1e4, torch.inf, 0, 1], [-90, -90, -90, 0, 90]])


@pytest.mark.parametrize(
    ("precision", "policy"), [(ct.precision.FLOAT32, "float32"), (ct.precision.FLOAT16, "storage16")]
)
@pytest.mark.parametrize("dim", [0, 1])
def test_logcumsumexp_of_infinities(precision: ct.precision, policy: str, dim: int) -> None:
    program = torch.export.export(Function(lambda x: x.logcumsumexp(dim)), (INFINITE,))
    specs = CoreMLBackend.generate_compile_specs(compute_precision=precision)
    buffer = lower_whole(program, compile_specs=specs).buffer
    (result,) = host.run(buffer, INFINITE, policy=policy)
    torch.testing.assert_close(result, INFINITE.logcumsumexp(dim), rtol=2.0**-10, atol=2.0**-9)


def test_norms_of_zeros_and_infinities() -> None:
    def norms(x: Tensor) -> Tensor:
        powers = [torch.linalg.vector_norm(x, power, dim=1) for power in (3, -1, 1.5, 2, 0)]
        return torch.stack([*powers, F.cosine_similarity(x, x + 1), F.pairwise_distance(x, x, 3.0)])

    x = torch.tensor([[0.0, 0, 0], [1, 0, 2], [3, -4, 5]])
    (result,) = host.run(_lowered(norms, x, "whole"), x, policy="storage16")
    torch.testing.assert_close(result, norms(x), rtol=2.0**-8, atol=2.0**-20)


def test_names_of_the_program_are_left_to_it() -> None:
    """A program has values of the names that MIL would give to new ones."""

    def function(x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + torch.sin(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        return x

    x = torch.linspace(-900, 900, 2048).reshape(2, 1024).half().float()
    for way in ("whole", "in parts"):
        (result,) = host.run(_lowered(function, x, way), x, policy="storage16")
        torch.testing.assert_close(result, function(x), rtol=2.0**-8, atol=2.0**-6)
