"""Operations that the converters of Core ML Tools lack or get wrong, and that run with the right numbers."""

import coremltools as ct
import pytest
import torch
from helpers.lowering import Function, calls, delegates, lower
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

from partitioner import CoreMLBackend, CoreMLPartitioner, host
from partitioner import lower as lower_whole

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
    "scalar zeros": (lambda x: x + torch.zeros(()) + torch.ones(()), X),
    "scalar integer ones": (lambda x: torch.gather(x, 1, torch.ones((), dtype=torch.long).expand(2, 8)), X),
    "add with alpha": (lambda x, y: torch.add(x, y, alpha=0.5), X, X.flip(0)),
    "add of integers with alpha": (lambda x: torch.add((x * 9).int(), 3, alpha=2), X),
    "sub with alpha": (lambda x, y: torch.sub(x, y, alpha=2), X, X.flip(0)),
    "sub of a scalar with alpha": (lambda x: torch.sub(x, 3, alpha=2), X),
    "rsub with alpha": (lambda x: torch.rsub(x, 3, alpha=2), X),
    "argmax of everything": (lambda x: x.argmax(), X),
    "argmin of everything, kept": (lambda x: x.argmin(keepdim=True), X),
    "argmax of one dimension": (lambda x: x.argmax(1), X),
    "circular 1d": (lambda x: F.pad(x, (2, 1), mode="circular"), X[None]),
    "circular 3d": (lambda x: F.pad(x, (2, 1, 1, 0, 0, 1), mode="circular"), IMAGE[None, None]),
    "circular, cropped on one side": (lambda x: F.pad(x, (2, -1), mode="circular"), X[None]),
    "scalar new_zeros": (lambda x: x + x.new_zeros(()), X),
    "gather new_ones": (lambda x: torch.gather(x, 1, x.new_ones((2, 8), dtype=torch.long)), X),
    "or of booleans": (lambda x: torch.where((x > 0) | (x < -0.5), x, x * 2), X),
    "exclusive or of booleans": (lambda x: torch.where((x > 0) ^ (x < 0.5), x, x * 2), X),
    "windows": (lambda x: x.unfold(-1, 4, 2).sum(-1), X),
    "windows of a middle dimension": (lambda x: x.unfold(1, 3, 1) * 2, IMAGE),
    "channels last inside": (lambda x: ((x * 2).to(memory_format=torch.channels_last) + 1).sum(1), IMAGE[None]),
    "rank 6 between reshapes": (
        lambda x: x.reshape(3, 2, 4, 2, 2, 2).permute(1, 3, 5, 0, 2, 4).reshape(2, 4, 24) * 2,
        IMAGE,
    ),
    "where of a scalar and a tensor": (lambda x: torch.where(x > 0, 0, x), X),
    "where of scalars": (lambda x: x * torch.where(torch.tensor(True), torch.tensor(2), torch.tensor(3.5)), X),
    "lerp by a scalar": (lambda x: torch.lerp(x, x + 1, 0.3), X),
    "hardshrink": (lambda x: F.hardshrink(x), X),
    "gelu by tanh": (lambda x: F.gelu(3 * x, approximate="tanh"), X),
    "addmm with integer factors": (lambda x: torch.addmm(x[:, :2], x, x.t(), beta=3, alpha=2), X),
    "tile to a new dimension": (lambda x: x.tile(2, 3, 1), X),
    "cosine similarity": (lambda x: F.cosine_similarity(x, x + 1), X),
    "rms_norm without eps": (lambda x: F.rms_norm(x, (8,)) + F.rms_norm(x, (8,), W), X),
    "unsorted topk": (lambda x: x.topk(8, largest=False, sorted=False)[0].sum(1), X),
    "variance of everything": (lambda x: x.var() + x.std(correction=2), X),
    "mean squared error": (lambda x: F.mse_loss(x, x * 2), X),
    "softplus with a threshold": (lambda x: F.softplus(x, beta=2, threshold=1), X),
    "queries that share keys": (
        lambda x: F.scaled_dot_product_attention(x * 2, x[:, ::2] + 1, x[:, ::2], enable_gqa=True),
        IMAGE.reshape(1, 12, 4, 4),
    ),
    "inverses of small numbers": (
        lambda x: torch.rsqrt(1e-6 * x.abs()) + 1e-6 / (1e-6 * x) + x.int().add(1).rsqrt(),
        X,
    ),
    "matrix norm by columns": (lambda x: torch.linalg.matrix_norm(x, 1), X),
    "group norm of a volume": (lambda x, w: F.group_norm(x, 2, w[:4], w[4:]), IMAGE.reshape(1, 4, 2, 6, 4), W),
    "six dimensions, place by place": (lambda x: (x.reshape(3, 2, 4, 2, 2, 2) * 2).sum(-1), IMAGE),
    "einsum that permutes six dimensions": (
        lambda x: torch.einsum("nhwpqc->nchpwq", x.reshape(1, 4, 4, 2, 2, 3)).reshape(1, 3, 8, 8) + 1,
        IMAGE,
    ),
    "largest of every channel": (lambda x: F.adaptive_max_pool2d(x, 1) + F.adaptive_max_pool2d(-x, 1), IMAGE[None]),
    "largest of every window": (lambda x: F.adaptive_max_pool2d(x, (2, 4)), IMAGE),
    "largest of every stretch": (lambda x: F.adaptive_max_pool1d(x, 4), IMAGE[0]),
    "largest of a volume": (lambda x: F.adaptive_max_pool3d(x, (1, 2, 4)), IMAGE.reshape(1, 4, 2, 6, 4)),
    "mean of a volume": (lambda x: F.adaptive_avg_pool3d(x, 1), IMAGE.reshape(1, 4, 2, 6, 4)),
    "means of a volume": (lambda x: F.adaptive_avg_pool3d(x, (2, 3, 1)), IMAGE.reshape(4, 2, 6, 4)),
    "cropped": (lambda x: F.pad(x, (-1, 2, 1, -1), value=3.0), X),
}


@pytest.mark.parametrize(("function", "inputs"), [(row[0], row[1:]) for row in TAKEN.values()], ids=TAKEN.keys())
def test_what_core_ml_tools_fails_on_is_lowered(function, inputs: tuple[torch.Tensor, ...]) -> None:
    partitioner = CoreMLPartitioner(compile_specs=FLOAT32)
    manager = lower(Function(function), inputs, partitioner=partitioner)
    assert len(delegates(manager)) == 1
    assert partitioner.rejections == ()
    (result,) = host.run(manager.to_executorch().buffer, *inputs)
    torch.testing.assert_close(result, function(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("rank", "varying"), [(2, (0,)), (3, (0, 2)), (4, (0,)), (4, (2, 3)), (5, ()), (5, (0,)), (5, (3,)), (5, (0, 2, 4))]
)
def test_group_norm_of_any_rank_and_varying_sizes(rank: int, varying: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.GroupNorm(4, 8).eval()
    nn.init.normal_(model.weight, generator=generator)
    nn.init.normal_(model.bias, generator=generator)
    example = torch.randn((3, 8, 4, 5, 6)[:rank], generator=generator)
    shapes = ({axis: Dim(f"axis_{axis}", max=9) for axis in varying},)
    program = torch.export.export(model, (example,), dynamic_shapes=shapes)
    lowered = lower_whole(program, compile_specs=FLOAT32)
    for more in (0, 2) if varying else (0,):
        shape = [size + more * (axis in varying) for axis, size in enumerate(example.shape)]
        x = torch.randn(shape, generator=generator)
        (result,) = host.run(lowered.buffer, x)
        torch.testing.assert_close(result, model(x).detach(), rtol=1e-5, atol=1e-5)


VOLUME = torch.linspace(-1, 1, 384).reshape(3, 2, 8, 8)
UNBATCHED = {
    "conv1d": (nn.Conv1d(2, 4, 3), X),
    "conv2d": (nn.Conv2d(3, 4, 3, padding="same"), IMAGE),
    "conv3d": (nn.Conv3d(3, 4, 2), VOLUME),
    "conv2d, circular": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), IMAGE),
    "conv_transpose1d": (nn.ConvTranspose1d(2, 4, 3), X),
    "conv_transpose2d": (nn.ConvTranspose2d(3, 4, 3, stride=2), IMAGE),
    "max_pool1d": (nn.MaxPool1d(2), X),
    "max_pool2d": (nn.MaxPool2d(2), IMAGE),
    "max_pool3d": (nn.MaxPool3d(2), VOLUME),
    "avg_pool1d": (nn.AvgPool1d(2), X),
    "avg_pool2d": (nn.AvgPool2d(2), IMAGE),
    "avg_pool3d": (nn.AvgPool3d(2), VOLUME),
}


@pytest.mark.parametrize(("model", "x"), UNBATCHED.values(), ids=UNBATCHED.keys())
def test_inputs_without_a_batch_dimension(model: nn.Module, x: torch.Tensor) -> None:
    partitioner = CoreMLPartitioner(compile_specs=FLOAT32)
    manager = lower(model.eval(), (x,), partitioner=partitioner)
    assert len(delegates(manager)) == 1
    assert partitioner.rejections == ()
    (result,) = host.run(manager.to_executorch().buffer, x)
    torch.testing.assert_close(result, model(x).detach(), rtol=1e-5, atol=1e-5)


INTEGERS = {
    "uint8": torch.arange(0, 250, 25, dtype=torch.uint8),
    "int8": torch.arange(-120, 120, 24, dtype=torch.int8),
    "bfloat16": torch.linspace(-2, 2, 10, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("x", INTEGERS.values(), ids=INTEGERS.keys())
def test_inputs_that_core_ml_does_not_take_are_converted_in_front_of_it(x: torch.Tensor) -> None:
    manager = lower(Function(lambda x: (x.float() * 2 + 1).relu()), (x,), compute_precision=ct.precision.FLOAT32)
    assert len(delegates(manager)) == 1
    (conversion,) = [name for name in calls(manager) if "call_delegate" not in name]
    assert "_to_dim_order_copy" in conversion
    (result,) = host.run(manager.to_executorch().buffer, x)
    torch.testing.assert_close(result, (x.float() * 2 + 1).relu())


REFUSED = {
    "integer and": (Function(lambda a: ((a > 0).to(torch.int32) & 1).float()), X, "aten.bitwise_and.Scalar"),
    "integer or": (Function(lambda a: ((a > 0).to(torch.int32) | 1).float()), X, "aten.bitwise_or.Scalar"),
    "channels last outside": (
        Function(lambda x: (x * 2).to(memory_format=torch.channels_last)),
        IMAGE[None],
        "dim_order_ops._to_dim_order_copy.default",
    ),
    "rank 6": (Function(lambda x: x.reshape(3, 2, 4, 2, 2, 2).cumsum(1).sum(-1)), IMAGE, "aten.cumsum.default"),
    "a mask among indices": (
        Function(lambda x: torch.ops.aten.index_put.default(x * 1, [None, x[0, 0] > 0], torch.tensor(0.0))),
        IMAGE,
        "aten.index_put.default",
    ),
    "resampling by a ratio that sizes do not have": (
        Function(lambda x: F.interpolate(x, scale_factor=(0.7, 0.45))),
        IMAGE[None],
        "aten.upsample_nearest2d.vec",
    ),
    "bilinear resampling by such a ratio": (
        Function(lambda x: F.interpolate(x, scale_factor=1.3, mode="bilinear")),
        IMAGE[None],
        "aten.upsample_bilinear2d.vec",
    ),
    "dilated max_pool2d": (nn.MaxPool2d(2, dilation=2), IMAGE, "aten.max_pool2d_with_indices.default"),
    "dilated max_pool1d": (nn.MaxPool1d(2, dilation=3), X[None], "aten.max_pool2d_with_indices.default"),
    "indices of max_pool1d": (
        Function(lambda x: sum(F.max_pool1d(x * 2, 2, return_indices=True))),
        X[None],
        "aten.max_pool2d_with_indices.default",
    ),
    "indices of an adaptive pool": (
        Function(lambda x: sum(F.adaptive_max_pool2d(x * 2, 4, return_indices=True))),
        IMAGE[None],
        "aten.max_pool2d_with_indices.default",
    ),
    "dilated max_pool2d beside a plain one": (
        nn.Sequential(nn.MaxPool2d(2, stride=1), nn.MaxPool2d(2, dilation=2)),
        IMAGE[None],
        "aten.max_pool2d_with_indices.default",
    ),
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


DECOMPOSED = {
    "linear resampling by a ratio": (lambda x: F.interpolate(x, scale_factor=1.3, mode="linear"), IMAGE),
    "bicubic sampling": (
        lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), mode="bicubic", align_corners=False),
        IMAGE[None],
    ),
    "roll of everything": (lambda x: x.roll(3) * 2, X),
    "overlapping fold": (lambda x: F.fold(x, (3, 3), 2), IMAGE.reshape(1, 48, 4)),
    "antialiasing": (lambda x: F.interpolate(x, size=(4, 4), mode="bilinear", antialias=True), IMAGE[None]),
    "all of numbers": (lambda x: x.all(1), X),
    "layer norm with a computed weight": (lambda x: F.layer_norm(x, (8,), x[0]), X),
}


@pytest.mark.parametrize(("function", "x"), DECOMPOSED.values(), ids=DECOMPOSED.keys())
def test_what_a_converter_gets_wrong_is_decomposed(function, x: torch.Tensor) -> None:
    manager = lower(Function(function), (x,), partitioner=CoreMLPartitioner(compile_specs=FLOAT32))
    (result,) = host.run(manager.to_executorch().buffer, x)
    torch.testing.assert_close(result, function(x), rtol=1e-5, atol=1e-5)
