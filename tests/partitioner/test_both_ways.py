"""Operations whose arguments the converters of Core ML Tools ignore or refuse: the numbers of PyTorch, both ways."""

from collections.abc import Callable

import pytest
import torch
from helpers.lowering import Function, operations
from helpers.lowering import lower as lower_to_edge
from torch import Tensor, nn
from torch.nn import functional as F

from partitioner import host, lower

X = torch.linspace(-3, 3, 16).reshape(2, 8)
MASK = X > 0.5
INTEGERS = torch.arange(16, dtype=torch.int32).reshape(2, 8)


def check(model: nn.Module, *inputs: Tensor) -> None:
    """Compares both ways of lowering with PyTorch; float16 holds 11 bits."""
    program = torch.export.export(model.eval(), inputs)
    expected = model(*inputs).detach()
    direct = lower(program)
    assert direct.rejections == ()
    for buffer in (direct.buffer, lower_to_edge(model, inputs).to_executorch().buffer):
        (result,) = host.run(buffer, *inputs)
        torch.testing.assert_close(result, expected, rtol=2e-3, atol=2e-3)


# 2 is True as a boolean, and 2.5 is 2 as an integer.
FILLING: dict[str, Callable[[Tensor, torch.dtype], Tensor]] = {
    "zeros_like": lambda x, dtype: torch.zeros_like(x, dtype=dtype),
    "ones_like": lambda x, dtype: torch.ones_like(x, dtype=dtype),
    "full_like": lambda x, dtype: torch.full_like(x, 2 if dtype == torch.bool else 2.5, dtype=dtype),
    "empty_like": lambda x, dtype: torch.empty_like(x, dtype=dtype).fill_(1),
    "new_full": lambda x, dtype: x.new_full((2, 8), 2, dtype=dtype),
    "new_ones": lambda x, dtype: x.new_ones((2, 8), dtype=dtype),
    "full": lambda x, dtype: torch.full((2, 8), 2, dtype=dtype),
    "full, a scalar": lambda x, dtype: torch.full((), 2, dtype=dtype),
}


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(X, id="of float32", marks=pytest.mark.slow),
        pytest.param(MASK, id="of bool"),
        pytest.param(INTEGERS, id="of int32", marks=pytest.mark.slow),
    ],
)
def test_what_fills_has_the_declared_dtype(source: Tensor) -> None:
    dtypes = torch.float32, torch.bool, torch.int32

    def fill(x: Tensor) -> Tensor:
        # Half of an integer or of True is a fraction only behind the conversion.
        filled = [make(x, dtype).float() * 0.5 + x for make in FILLING.values() for dtype in dtypes]
        return torch.stack(filled)

    check(Function(fill), source)


def test_zeros_like_a_mask_are_numbers() -> None:
    check(Function(lambda mask: torch.zeros_like(mask, dtype=torch.float32).masked_fill_(mask, -5.0)), MASK)


def test_a_boolean_mask_of_keys_in_a_transformer() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).eval()
    mask = torch.tensor([[False, False, False, True, True], [False] * 5])
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        check(Function(lambda x, keys: layer(x, src_key_padding_mask=keys)), torch.randn(2, 5, 16), mask)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("kind", "sizes"), [(nn.InstanceNorm1d, (9,)), (nn.InstanceNorm2d, (5, 6))])
def test_instance_norms_keep_their_statistics(kind: type[nn.Module], sizes: tuple[int, ...], affine: bool) -> None:
    torch.manual_seed(0)
    norm = kind(4, affine=affine, track_running_stats=True)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 2)
    check(norm, torch.randn(2, 4, *sizes))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-2, 3), (-1.0, 1.0), (-1, 2), (0.0, 6.0)])
def test_hardtanh(low: float, high: float) -> None:
    check(nn.Hardtanh(low, high), X)


def test_hardtanh_in_place() -> None:
    check(Function(lambda x: F.hardtanh_(x * 2, 0, 1) * 2), X)


# Equation, and the shapes of the operands.
EINSUMS = {
    "ellipsis": ("...ij,...jk->...ik", (2, 3, 4, 5), (2, 3, 5, 6)),
    "ellipsis of one operand": ("...i,ij->...j", (2, 3, 4), (4, 5)),
    "ellipsis broadcast": ("...ij,...jk->...ik", (1, 3, 4, 5), (2, 1, 5, 6)),
    "no result named": ("ji,jk", (3, 4), (3, 5)),
    "broadcast": ("bij,bjk->bik", (1, 3, 4), (2, 4, 5)),
    "three operands": ("...i,ij,...j->...", (2, 3), (3, 4), (2, 4)),
}
_QUICK = ("ellipsis broadcast", "no result named")


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        pytest.param(row[0], row[1:], id=name, marks=[pytest.mark.slow] if name not in _QUICK else [])
        for name, row in EINSUMS.items()
    ],
)
def test_every_form_of_einsum(equation: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    torch.manual_seed(0)
    # Sums of products of numbers between 1 and 2 do not cancel, so that float16 keeps them to its precision.
    operands = [1 + torch.rand(shape) for shape in shapes]
    check(Function(lambda *xs: torch.einsum(equation, *xs)), *operands)


class QuantizedConstant(nn.Module):
    """Attention scores of keys that are an int8 constant with a scale for each position."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("keys", torch.randint(1, 128, (2, 6, 3, 4), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(6) / 127)
        self.register_buffer("zero_points", torch.zeros(6, dtype=torch.int64))

    def forward(self, queries: Tensor) -> Tensor:
        keys = torch.ops.quantized_decomposed.dequantize_per_channel(
            self.keys, self.scales, self.zero_points, 1, -128, 127, torch.int8
        )
        return torch.einsum("bqhd,bkhd->bhqk", queries, keys)


def test_an_einsum_with_a_quantized_constant() -> None:
    check(QuantizedConstant(), torch.rand(2, 5, 3, 4))


FACTORS = {
    "both": {"beta": 3, "alpha": 2},
    "alpha": {"alpha": 0.5},
    "no addend": {"beta": 0, "alpha": 1.5},
}


@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS.keys())
def test_products_with_factors(factors: dict[str, float]) -> None:
    torch.manual_seed(0)
    batches = torch.rand(2, 3, 5), torch.rand(2, 3, 4), torch.rand(2, 4, 5)

    def both(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return torch.baddbmm(x, first, second, **factors) + torch.addmm(x[0], first[0], second[0], **factors)

    check(Function(both), *batches)


@pytest.mark.parametrize("divisor", [-4, 3, torch.tensor(-4), torch.tensor([1, 2, -3])])
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_floor_divisions_of_integers_outside_core_ml(dtype: torch.dtype, divisor: int | Tensor) -> None:
    x = torch.arange(-9, 9, dtype=dtype).reshape(6, 3)
    function = Function(lambda x: (torch.asinh((x // divisor).float()) + 1).relu())
    program = torch.export.export(function, (x,))
    for buffer in (lower(program).buffer, lower_to_edge(function, (x,)).to_executorch().buffer):
        (result,) = host.run(buffer, x)
        torch.testing.assert_close(result, function(x), rtol=2e-3, atol=2e-3)


def test_a_factor_stands_behind_the_product() -> None:
    function = Function(lambda x, a, b: torch.baddbmm(x, a, b, alpha=0.5))
    manager = lower_to_edge(function, (torch.rand(2, 3, 5), torch.rand(2, 3, 4), torch.rand(2, 4, 5)))
    kinds = [operation.type for operation in operations(manager) if operation.type != "cast"]
    assert kinds == ["matmul", "mul", "add"]


TWO_WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "a causal mask": lambda x: torch.softmax(x[:, :2] + nn.Transformer.generate_square_subsequent_mask(2), -1),
    "a mask by triu": lambda x: x.masked_fill(torch.ones(2, 8, dtype=torch.bool).triu(1), float("-inf")).softmax(-1),
    "a mask by tril": lambda x: x.masked_fill(~torch.ones(2, 8, dtype=torch.bool).tril(), float("-inf")).softmax(-1),
    "triu of the input": lambda x: x.triu(1) + x.tril(-1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1) * 2,
    "norms": lambda x: torch.linalg.vector_norm(x, dim=1) + x.norm(dim=1),
}


@pytest.mark.parametrize("function", TWO_WAYS.values(), ids=TWO_WAYS.keys())
def test_both_ways_give_the_same_bits(function: Callable[[Tensor], Tensor]) -> None:
    program = torch.export.export(Function(function), (X,))
    (direct,) = host.run(lower(program).buffer, X)
    (edge,) = host.run(lower_to_edge(Function(function), (X,)).to_executorch().buffer, X)
    torch.testing.assert_close(direct, edge, rtol=0, atol=0)
    torch.testing.assert_close(direct, function(X), rtol=2e-3, atol=2e-3)
