"""Where quantize and dequantize stand after prepare, calibrate and convert."""

import pytest
import torch
from models import ARCHITECTURES, build, signal_to_noise
from torch import Tensor, nn

from coreml_quantizer.decisions import decisions_of

from .graphs import (
    QDQ,
    WEIGHT_ONLY,
    call,
    calls,
    input_qparams,
    is_dequantized,
    is_float_output,
    output_qparams,
    placements,
    prepare,
    quantize,
)

aten = torch.ops.aten
IMAGE = (torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8),)
ROWS = (torch.linspace(-1, 1, 4 * 6).reshape(4, 6),)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("activation", "op", "zero_point"),
    [
        (nn.ReLU(), aten.relu, 0),
        (nn.ReLU(inplace=True), aten.relu_, 0),
        (nn.ReLU6(), aten.hardtanh, 0),
        (nn.Hardtanh(), aten.hardtanh, 128),
        (nn.LeakyReLU(), aten.leaky_relu, 128),
        (nn.ELU(), aten.elu, 128),
        (nn.GELU(), aten.gelu, 128),
        (nn.GELU("tanh"), aten.gelu, 128),
        (nn.SiLU(), aten.silu, 128),
        (nn.Hardswish(), aten.hardswish, 128),
        (nn.Mish(), aten.mish, 128),
        (nn.PReLU(), aten.prelu, 128),
        (nn.Softplus(), aten.softplus, 128),
    ],
    ids=lambda value: str(value),
)
def test_convolution_batch_norm_and_activation_are_one_quantized_block(
    activation: nn.Module, op: object, zero_point: int
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), activation)
    graph = quantize(model, IMAGE)
    convolution = call(graph, aten.conv2d)
    assert not calls(graph, aten.batch_norm)
    assert is_dequantized(convolution.args[0])
    assert convolution.args[1].target is QDQ.dequantize_per_channel.default
    assert list(convolution.users) == [call(graph, op)], "nothing may stand between a convolution and its activation"
    assert output_qparams(call(graph, op))[1] == zero_point


@pytest.mark.parametrize(
    ("activation", "op", "qparams"),
    [
        (nn.Sigmoid(), aten.sigmoid, (1 / 256, 0)),
        (nn.Hardsigmoid(), aten.hardsigmoid, (1 / 256, 0)),
        (nn.Tanh(), aten.tanh, (2 / 256, 128)),
    ],
    ids=["sigmoid", "hardsigmoid", "tanh"],
)
def test_bounded_activations_have_fixed_qparams(activation: nn.Module, op: object, qparams: tuple[float, int]) -> None:
    graph = quantize(nn.Sequential(nn.Linear(6, 4), activation), ROWS)
    assert output_qparams(call(graph, op)) == qparams


@pytest.mark.parametrize(
    ("layer", "inputs", "op", "axis"),
    [
        (nn.Conv1d(3, 4, 3, padding="same"), (torch.ones(1, 3, 9),), aten.conv1d, 0),
        (nn.Conv2d(4, 4, 3, groups=2, stride=2, padding=1), (torch.ones(1, 4, 8, 8),), aten.conv2d, 0),
        (nn.Conv2d(3, 4, 3, padding="same"), IMAGE, aten.conv2d, 0),
        (nn.Conv3d(1, 2, 2), (torch.ones(1, 1, 3, 3, 3),), aten.conv3d, 0),
        (nn.ConvTranspose2d(3, 5, 2), IMAGE, aten.conv_transpose2d, 1),
        (nn.Linear(6, 4, bias=False), ROWS, aten.linear, 0),
    ],
    ids=["conv1d-same", "conv2d-groups", "conv2d-same", "conv3d", "conv_transpose2d", "linear"],
)
def test_weights_are_int8_per_output_channel(
    layer: nn.Module, inputs: tuple[Tensor, ...], op: object, axis: int
) -> None:
    weight = call(quantize(layer, inputs), op).args[1]
    assert weight.target is QDQ.dequantize_per_channel.default
    assert weight.args[3:] == (axis, -128, 127, torch.int8)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_strict_and_non_strict_exports_are_quantized_alike_and_floats_only(name: str) -> None:
    model, inputs = build(name)
    graphs = [quantize(model, inputs, strict=strict) for strict in (False, True)]
    first, second = (placements(graph) for graph in graphs)
    assert sorted(first) == sorted(second)
    torch.testing.assert_close(graphs[0](*inputs), graphs[1](*inputs))
    quantizers = calls(graphs[0], QDQ.quantize_per_tensor)
    assert quantizers
    assert {node.args[0].meta["val"].dtype for node in quantizers} == {torch.float32}


def test_integers_and_bools_are_left_alone() -> None:
    class Indices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4)

        def forward(self, x: Tensor, i: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.linear(x) + i, (i + 1) * i, b & (i > 0)

    inputs = (*ROWS, torch.arange(4), torch.tensor([True, False, True, False]))
    graph = quantize(Indices(), inputs)
    mixed, whole = calls(graph, aten.add)
    assert is_dequantized(mixed.args[0])
    assert not is_dequantized(mixed.args[1])
    assert not is_dequantized(whole.args[0])
    assert is_float_output(whole)
    assert is_float_output(call(graph, aten.mul))


class Attention(nn.Module):
    """Scores, a mask of each usual kind, and softmax."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.query = nn.Linear(6, 6)
        self.register_buffer("bias", torch.full((4, 4), torch.finfo(torch.float32).min).triu(1))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        scores = torch.matmul(self.query(x), x.transpose(0, 1))
        if self.kind == "additive":
            scores = scores + (1.0 - keep.float()) * -1e4
        elif self.kind == "buffer":
            scores = scores + self.bias
        elif self.kind == "fill":
            scores = scores.masked_fill(keep == 0, -torch.inf)
        elif self.kind == "where":
            scores = torch.where(keep > 0, scores, torch.full((), torch.finfo(torch.float32).min))
        elif self.kind == "float":
            scores = scores + keep.float().log()
        return torch.matmul(torch.softmax(scores, -1), x)


@pytest.mark.parametrize("kind", ["additive", "buffer", "fill", "where", "float"])
def test_masks_never_set_a_range(kind: str) -> None:
    model = Attention(kind)
    inputs = (*ROWS, torch.ones(4, 4).tril())
    expected = model(*inputs)
    graph = quantize(model, inputs)
    for node in calls(graph, QDQ.quantize_per_tensor):
        assert node.args[1] < 1, f"{node.args[0]} was quantized with a scale of {node.args[1]}"
    assert signal_to_noise(expected, graph(*inputs)) > 30
    # Softmax lies in [0, 1]: the product behind it reads it with the fixed step of 1/256.
    assert input_qparams(calls(graph, aten.matmul)[1]) == (1 / 256, 0)


def test_residual_add_has_both_inputs_quantized_and_fuses_relu() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.conv(x) + x)

    graph = quantize(Residual(), IMAGE)
    add = call(graph, aten.add)
    assert [is_dequantized(operand) for operand in add.args] == [True, True]
    assert list(add.users) == [call(graph, aten.relu)]
    assert output_qparams(call(graph, aten.relu))[1] == 0
    # The model's input is read twice but observed once.
    assert input_qparams(add, 1) == input_qparams(call(graph, aten.conv2d))


def test_a_sum_that_a_norm_reads_has_quantized_inputs_and_a_float_output() -> None:
    class PreNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.norm = nn.LayerNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x) + x
            return y + self.c(self.norm(self.b(x) + y))

    graph = quantize(PreNorm(), ROWS)
    first, second, last = calls(graph, aten.add)
    for add in (first, second, last):
        assert [is_dequantized(operand) for operand in add.args] == [True, True]
    assert list(second.users) == [call(graph, aten.layer_norm)]
    output_qparams(first)
    output_qparams(last)


@pytest.mark.parametrize(("activation", "zero_point"), [(nn.ReLU(), 0), (nn.SiLU(), 128)])
def test_add_is_affine_only_when_all_its_inputs_are(activation: nn.Module, zero_point: int) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
            self.second = nn.Sequential(nn.Linear(6, 4), activation)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) + self.second(x)

    assert output_qparams(call(quantize(Sum(), ROWS), aten.add))[1] == zero_point


@pytest.mark.parametrize("operator", [torch.add, torch.sub, torch.mul])
def test_an_operator_on_one_tensor_twice_and_on_a_scalar(operator: object) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return operator(operator(y, y), 3.0)  # type: ignore[operator]

    graph = quantize(Twice(), ROWS)
    both, scalar = calls(graph, getattr(aten, operator.__name__))  # type: ignore[attr-defined]
    assert input_qparams(both, 0) == input_qparams(both, 1) == output_qparams(call(graph, aten.linear))
    assert input_qparams(scalar) == output_qparams(both)
    output_qparams(scalar)


def test_an_operator_whose_operands_are_float_stays_float() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (x + y) * 2

    graph = quantize(Sum(), (*ROWS, *ROWS))
    assert not calls(graph, QDQ.quantize_per_tensor)
    assert {decision.reason for decision in decisions_of(graph)} == {
        "none of its operands is quantized, so eight bits would cost accuracy and save nothing"
    }


def test_a_chain_of_constants_is_one_block_with_its_activation() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4)
            self.scale = nn.Parameter(torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.linear(x) * self.scale + 0.5 - self.scale)

    graph = quantize(Chain(), ROWS)
    mul, add, sub, relu = (call(graph, op) for op in (aten.mul, aten.add, aten.sub, aten.relu))
    assert is_dequantized(mul.args[0])
    assert [list(node.users) for node in (mul, add, sub)] == [[add], [sub], [relu]]
    assert output_qparams(relu)[1] == 0


@pytest.mark.parametrize(
    ("layer", "op"),
    [
        (nn.MaxPool2d(2), aten.max_pool2d),
        (nn.AvgPool2d(2), aten.avg_pool2d),
        (nn.AdaptiveAvgPool2d(1), aten.adaptive_avg_pool2d),
        (nn.Flatten(), aten.flatten),
        (nn.Dropout(), aten.dropout),
        (nn.Upsample(scale_factor=2), aten.upsample_nearest2d),
    ],
    ids=lambda value: str(value),
)
def test_operators_that_keep_values_share_the_qparams_of_their_input(layer: nn.Module, op: object) -> None:
    graph = quantize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), layer), IMAGE)
    node = call(graph, op)
    assert input_qparams(node) == output_qparams(node) == output_qparams(call(graph, aten.relu))


@pytest.mark.parametrize(
    ("mode", "value", "shares"),
    [("constant", 0.0, True), ("constant", None, True), ("reflect", None, True), ("constant", 1.0, False)],
)
def test_padding_with_zeros_or_copies_shares_the_qparams_of_its_input(
    mode: str, value: float | None, shares: bool
) -> None:
    class Pad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(nn.functional.pad(self.first(x).relu(), (1, 1, 1, 1), mode, value))

    graph = quantize(Pad(), IMAGE)
    pad = call(graph, aten.pad)
    relu = output_qparams(call(graph, aten.relu))
    assert input_qparams(pad) == relu
    assert (output_qparams(pad) == relu) is shares


def test_mean_reshape_permute_transpose_and_slice_share_too() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).permute(0, 2, 3, 1)[:, 1:].transpose(1, 2).reshape(2, 8, -1).mean(1)

    graph = quantize(Views(), IMAGE)
    expected = output_qparams(call(graph, aten.conv2d))
    for op in (aten.permute, aten.slice, aten.transpose, aten.reshape, aten.mean):
        for node in calls(graph, op):
            assert output_qparams(node) == expected


@pytest.mark.parametrize("parts", ["split", "chunk", "unbind"])
def test_the_parts_of_a_split_share_and_may_be_stacked_again(parts: str) -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 4), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).reshape(4, 2, 2)
            if parts == "unbind":
                return self.second(torch.stack(y.unbind(1)))
            left, right = y.split(1, 1) if parts == "split" else y.chunk(2, 1)
            return self.second(torch.cat([right, left], 1))

    graph = quantize(Parts(), ROWS)
    expected = output_qparams(call(graph, aten.reshape))
    join = call(graph, aten.stack if parts == "unbind" else aten.cat)
    assert {(source.args[1], source.args[2]) for source in join.args[0]} == {expected}
    assert output_qparams(join) == expected


def test_attention_reads_and_writes_quantized_values_and_leaves_its_mask() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(6, 18)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            q, k, v = self.qkv(x).reshape(1, 4, 3, 6).transpose(1, 2).unsqueeze(1).unbind(2)
            return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    graph = quantize(Attend(), (*ROWS, torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1) > 0, -torch.inf)))
    attention = call(graph, aten.scaled_dot_product_attention)
    assert [is_dequantized(operand) for operand in attention.args[:4]] == [True, True, True, False]
    output_qparams(attention)


def test_cat_gives_all_its_inputs_one_scale() -> None:
    class Cat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small = nn.Linear(6, 4)
            self.large = nn.Linear(6, 4)
            self.token = nn.Parameter(torch.ones(1, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.token, self.small(x).relu().reshape(4, 4), 100 * self.large(x)])

    graph = quantize(Cat(), ROWS)
    cat = call(graph, aten.cat)
    scales = {(source.args[1], source.args[2]) for source in cat.args[0]}
    assert scales == {output_qparams(cat)}
    assert scales == {output_qparams(call(graph, aten.relu))} == {output_qparams(call(graph, aten.mul))}


def test_cat_leaves_fixed_qparams_as_they_are() -> None:
    class Cat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(6, 4)
            self.value = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.gate(x).sigmoid(), self.value(x)])

    graph = quantize(Cat(), ROWS)
    assert output_qparams(call(graph, aten.sigmoid)) == (1 / 256, 0)
    first, second = call(graph, aten.cat).args[0]
    assert first.args[1:3] == (1 / 256, 0)
    assert second.args[1:3] != (1 / 256, 0)


def test_a_module_called_twice_is_quantized_at_both_calls_with_one_weight() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.linear(x))

    graph = quantize(Twice(), ROWS)
    first, second = calls(graph, aten.linear)
    assert all(is_dequantized(node.args[0]) and is_dequantized(node.args[1]) for node in (first, second))
    assert first.args[1].args[0].target == second.args[1].args[0].target
    output_qparams(first)
    output_qparams(second)


def test_float_operators_are_not_surrounded_by_quantizers() -> None:
    model = nn.Sequential(nn.LayerNorm(6), nn.Softmax(-1), nn.Tanh())
    assert not calls(quantize(model, ROWS), QDQ.quantize_per_tensor)


def test_weight_only_needs_no_calibration_and_quantizes_no_activation() -> None:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    graph = convert_pt2e(prepare(model, IMAGE, WEIGHT_ONLY))
    assert not calls(graph, QDQ.quantize_per_tensor)
    weight = call(graph, aten.conv2d).args[1]
    scale = operator_get(graph, weight.args[1].target)
    expected = model[0].weight.detach().abs().amax(dim=(1, 2, 3)) / 127.5
    # Scales are the next float16 number above: at most one unit in its 11-bit significand.
    assert ((scale >= expected) & (scale <= expected * (1 + 2**-10))).all()
    torch.testing.assert_close(graph(*IMAGE), model(*IMAGE), atol=0.05, rtol=0)


def operator_get(graph_module: nn.Module, target: str) -> Tensor:
    value = getattr(graph_module, target)
    assert isinstance(value, Tensor)
    return value


def test_float_weights_with_quantized_activations() -> None:
    graph = quantize(nn.Linear(6, 4), ROWS, {"global_config": {"weight_dtype": "float32"}})
    linear = call(graph, aten.linear)
    assert linear.args[1].op == "get_attr"
    assert is_dequantized(linear.args[0])
    output_qparams(linear)


def test_a_constant_factor_of_a_matrix_product_is_a_weight() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    weight = call(quantize(Product(), ROWS), aten.matmul).args[1]
    assert weight.target is QDQ.dequantize_per_channel.default
    assert weight.args[3] == 1
