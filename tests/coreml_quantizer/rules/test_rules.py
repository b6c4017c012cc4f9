"""Every operator that models use has a row, and becomes what its row says."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.graphs import QDQ, WEIGHT_ONLY, call, input_qparams, is_dequantized, output_qparams, quantize
from helpers.mil_program import lowered_operations
from helpers.models import signal_to_noise
from torch import Tensor, nn

from coreml_quantizer import Treatment, rules
from coreml_quantizer.placement.decisions import Decision, decisions_of

aten = torch.ops.aten
IMAGE = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)),)
ROWS = (torch.randn(4, 6, generator=torch.Generator().manual_seed(1)),)
EIGHT_BITS = 25.0
"""Decibels that a few 8-bit steps leave at least."""

COVERED = {
    Treatment.QUANTIZED: (
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution"),
        *("linear", "embedding", "matmul", "bmm", "mm", "mv", "addmm", "baddbmm", "einsum"),
        *("scaled_dot_product_attention", "add", "sub", "mul", "div", "rsub"),
        *("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"),
    ),
    Treatment.ACTIVATION: (
        *("relu", "relu6", "leaky_relu", "rrelu", "prelu", "gelu", "silu", "hardswish", "hardsigmoid", "sigmoid"),
        *(
            "tanh",
            "elu",
            "selu",
            "celu",
            "mish",
            "softplus",
            "clamp",
            "clamp_min",
            "clamp_max",
            "hardtanh",
            "threshold",
        ),
        "log_sigmoid",
    ),
    Treatment.BATCH_NORM: ("batch_norm",),
    Treatment.FLOAT: (
        *("layer_norm", "rms_norm", "group_norm", "instance_norm", "softmax", "log_softmax", "sum", "embedding_bag"),
        "upsample_bicubic2d",
    ),
    Treatment.SHARED: (
        *(f"{kind}_pool{rank}d" for kind in ("max", "avg", "adaptive_avg") for rank in (1, 2, 3)),
        *("mean", "amax", "amin", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
        *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "_upsample_nearest_exact2d"),
        *("pad", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "reshape", "view", "flatten", "unflatten"),
        *("permute", "transpose", "t", "mT", "movedim", "squeeze", "unsqueeze", "slice", "select", "narrow", "expand"),
        *("index", "index_select", "gather", "repeat", "tile", "flip", "roll", "contiguous", "clone", "dropout", "to"),
        *("fliplr", "flipud", "take_along_dim", "unfold", "im2col", "atleast_3d"),
    ),
    Treatment.SPLIT: (
        *("split", "split_with_sizes", "chunk", "unbind", "tensor_split", "hsplit", "vsplit", "dsplit", "max", "min"),
        *(f"adaptive_max_pool{rank}d" for rank in (1, 2, 3)),
    ),
    Treatment.CONCATENATED: ("cat", "stack", "hstack", "vstack", "dstack", "column_stack"),
}


@pytest.mark.parametrize("treatment", COVERED, ids=lambda treatment: treatment.name)
def test_the_table_covers_what_models_use(treatment: Treatment) -> None:
    found = {str(rule.op): rule.treatment for rule in rules}
    wanted = {f"aten.{name}": treatment for name in COVERED[treatment]}
    assert {op: found.get(op) for op in wanted} == wanted


class Case(nn.Module):
    """A forward function with the modules it needs; `before` quantizes what it reads."""

    def __init__(self, function: Callable[..., Tensor], before: nn.Module | None = None, **parts: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.before = nn.Identity() if before is None else before
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.before(x))


def behind_conv(function: Callable[..., Tensor], **parts: nn.Module) -> Case:
    return Case(function, nn.Conv2d(4, 4, 3, padding=1), **parts)


def decision(model: nn.Module, inputs: tuple[Tensor, ...], op: str) -> tuple[Decision, float]:
    """The last decision about an operator, and the accuracy of the whole in decibels."""
    graph = quantize(model, inputs)
    found = [decision for decision in decisions_of(graph) if decision.op == op]
    return found[-1], signal_to_noise(model(*inputs), graph(*inputs))


CONVOLUTIONS = {
    "conv1d-groups": (nn.Conv1d(4, 8, 3, groups=4, dilation=2), (2, 4, 9), "conv1d", 0),
    "conv1d-circular": (nn.Conv1d(4, 8, 3, padding=1, padding_mode="circular"), (2, 4, 9), "conv1d", 0),
    "conv2d-same": (nn.Conv2d(4, 8, (3, 2), padding="same"), (2, 4, 6, 6), "conv2d", 0),
    "conv2d-valid": (nn.Conv2d(4, 8, 3, padding="valid", bias=False), (2, 4, 6, 6), "conv2d", 0),
    "conv2d-reflect": (nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), (2, 4, 6, 6), "conv2d", 0),
    "conv2d-unbatched": (nn.Conv2d(4, 8, 3), (4, 6, 6), "conv2d", 0),
    "conv3d": (nn.Conv3d(2, 4, 2, stride=2), (1, 2, 4, 4, 4), "conv3d", 0),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 6, 3), (2, 4, 5), "conv_transpose1d", 1),
    "conv_transpose2d-groups": (nn.ConvTranspose2d(4, 6, 2, groups=2), (2, 4, 5, 5), "conv_transpose2d", 1),
    "conv_transpose3d": (nn.ConvTranspose3d(2, 4, 2), (1, 2, 3, 3, 3), "conv_transpose3d", 1),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_have_int8_weights_per_output_channel(name: str) -> None:
    layer, shape, op, axis = CONVOLUTIONS[name]
    inputs = (torch.randn(shape, generator=torch.Generator().manual_seed(2)),)
    graph = quantize(layer, inputs)
    node = call(graph, getattr(aten, op))
    assert is_dequantized(node.args[0])
    assert node.args[1].target is QDQ.dequantize_per_channel.default
    assert node.args[1].args[3] == axis
    output_qparams(node)
    assert signal_to_noise(layer(*inputs), graph(*inputs)) > EIGHT_BITS


OUTCOMES: dict[str, tuple[nn.Module, tuple[Tensor, ...], str, str]] = {
    "addmm": (
        Case(lambda s, x: torch.addmm(s.a.bias, x, s.a.weight.t()), a=nn.Linear(6, 3)),
        ROWS,
        "addmm",
        "quantized",
    ),
    "baddbmm": (behind_conv(lambda s, x: torch.baddbmm(x[:, 0], x[:, 1], x[:, 2])), IMAGE, "baddbmm", "quantized"),
    "mm": (Case(lambda s, x: torch.mm(x, x.t())), ROWS, "mm", "quantized"),
    "einsum": (
        Case(lambda s, x: torch.einsum("...i,oi->...o", x, s.a.weight), a=nn.Linear(6, 3)),
        ROWS,
        "einsum",
        "quantized",
    ),
    "div": (behind_conv(lambda s, x: x / 3.0), IMAGE, "div", "quantized"),
    "div-buffer": (behind_conv(lambda s, x: x / s.a.weight.detach()[0], a=nn.Linear(1, 1)), IMAGE, "div", "quantized"),
    "div-activation": (behind_conv(lambda s, x: x / (x.abs() + 1)), IMAGE, "div", "float"),
    "rsub": (behind_conv(lambda s, x: 1 - x), IMAGE, "rsub", "quantized"),
    "mv": (Case(lambda s, x: torch.mv(s.a.weight, s.a(x)[0]), a=nn.Linear(6, 6)), ROWS, "mv", "quantized"),
    "unfold": (behind_conv(lambda s, x: x.unfold(2, 2, 2)), IMAGE, "unfold", "shared"),
    "im2col": (behind_conv(lambda s, x: F.unfold(x, 2)), IMAGE, "im2col", "shared"),
    "hstack": (behind_conv(lambda s, x: torch.hstack([x, x.relu()])), IMAGE, "hstack", "shared"),
    "hsplit": (behind_conv(lambda s, x: torch.hsplit(x, 2)[0]), IMAGE, "hsplit", "shared"),
    "einsum-sum": (behind_conv(lambda s, x: torch.einsum("bchw->bc", x)), IMAGE, "einsum", "float"),
    "einsum-vector": (
        behind_conv(lambda s, x: torch.einsum("bchw,c->bhw", x, s.a.bias), a=nn.Linear(1, 4)),
        IMAGE,
        "einsum",
        "quantized",
    ),
    "softmax": (behind_conv(lambda s, x: x.softmax(1)), IMAGE, "softmax", "float"),
    "group_norm": (behind_conv(lambda s, x: s.a(x), a=nn.GroupNorm(2, 4)), IMAGE, "group_norm", "float"),
    "instance_norm": (behind_conv(lambda s, x: s.a(x), a=nn.InstanceNorm2d(4)), IMAGE, "instance_norm", "float"),
    "rms_norm": (behind_conv(lambda s, x: s.a(x), a=nn.RMSNorm(8)), IMAGE, "rms_norm", "float"),
    "sum": (behind_conv(lambda s, x: x.sum(1)), IMAGE, "sum", "float"),
    "amax": (behind_conv(lambda s, x: x.amax(1)), IMAGE, "amax", "shared"),
    "max-dim": (behind_conv(lambda s, x: x.max(1)[0]), IMAGE, "max", "shared"),
    "max-pool-indices": (
        behind_conv(lambda s, x: F.max_pool2d(x, 2, return_indices=True)[0]),
        IMAGE,
        "max_pool2d_with_indices",
        "shared",
    ),
    "bilinear": (
        behind_conv(lambda s, x: F.interpolate(x, scale_factor=2, mode="bilinear")),
        IMAGE,
        "upsample_bilinear2d",
        "shared",
    ),
    "bicubic": (
        behind_conv(lambda s, x: F.interpolate(x, scale_factor=2, mode="bicubic")),
        IMAGE,
        "upsample_bicubic2d",
        "float",
    ),
    "exact": (
        behind_conv(lambda s, x: F.interpolate(x, (5, 5), mode="nearest-exact")),
        IMAGE,
        "_upsample_nearest_exact2d",
        "shared",
    ),
    "pixel-unshuffle": (behind_conv(lambda s, x: F.pixel_unshuffle(x, 2)), IMAGE, "pixel_unshuffle", "shared"),
    "channel-shuffle": (behind_conv(lambda s, x: F.channel_shuffle(x, 2)), IMAGE, "channel_shuffle", "shared"),
    "tile": (behind_conv(lambda s, x: x.tile(1, 2, 1, 1)), IMAGE, "tile", "shared"),
    "index": (behind_conv(lambda s, x: x[:, [0, 2]]), IMAGE, "index", "shared"),
    "gather": (
        behind_conv(lambda s, x: x.gather(1, torch.zeros(2, 1, 8, 8, dtype=torch.long))),
        IMAGE,
        "gather",
        "shared",
    ),
    "tensor-split": (behind_conv(lambda s, x: x.tensor_split(2, 1)[0]), IMAGE, "tensor_split", "shared"),
    "to": (behind_conv(lambda s, x: x.to(torch.float32)), IMAGE, "to", "shared"),
    "log-sigmoid": (behind_conv(lambda s, x: F.logsigmoid(x)), IMAGE, "log_sigmoid", "quantized"),
    "threshold": (behind_conv(lambda s, x: F.threshold(x, 0.0, 0.0)), IMAGE, "threshold", "quantized"),
    "clamp-max": (behind_conv(lambda s, x: x.clamp_max(0.5)), IMAGE, "clamp_max", "quantized"),
    "celu": (behind_conv(lambda s, x: F.celu(x)), IMAGE, "celu", "quantized"),
    "selu": (behind_conv(lambda s, x: F.selu(x)), IMAGE, "selu", "quantized"),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_operators_become_what_their_rows_say(name: str) -> None:
    model, inputs, op, outcome = OUTCOMES[name]
    found, accuracy = decision(model, inputs, f"aten.{op}")
    assert found.outcome == outcome
    assert found.reason
    assert accuracy > EIGHT_BITS


def test_a_sum_of_products_keeps_a_constant_as_bias_and_a_tensor_as_residual() -> None:
    biased = quantize(OUTCOMES["addmm"][0], ROWS)
    assert call(biased, aten.addmm).args[0].op == "get_attr"
    residual = call(quantize(OUTCOMES["baddbmm"][0], IMAGE), aten.baddbmm)
    assert [is_dequantized(operand) for operand in residual.args] == [True, True, True]


@pytest.mark.parametrize(
    ("equation", "axis"), [("bchw,cd->bdhw", 1), ("bchw,dc->bdhw", 0), ("bchw,ci->bhw", 0), ("b...w,...d->b...wd", 1)]
)
def test_the_constant_of_an_einsum_has_its_channels_where_the_result_keeps_them(equation: str, axis: int) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4 if "..." not in equation else 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum(equation, x[:, :, 0] if "..." in equation else x, self.weight)

    einsum = call(quantize(Product(), IMAGE), aten.einsum)
    image, weight = einsum.args[1]
    assert is_dequantized(image)
    assert weight.target is QDQ.dequantize_per_channel.default
    assert weight.args[3] == axis
    output_qparams(einsum)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (nn.LSTM, None),
        pytest.param(nn.LSTM, WEIGHT_ONLY, marks=pytest.mark.slow),
        pytest.param(nn.GRU, None, marks=pytest.mark.slow),
        pytest.param(nn.GRU, WEIGHT_ONLY, marks=pytest.mark.slow),
    ],
)
def test_recurrent_layers_store_int8_matrices_and_stay_float(kind: type[nn.Module], config: object) -> None:
    model = Case(lambda s, x: s.a(x)[0], a=kind(6, 16, batch_first=True)).eval()
    inputs = (torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(3)),)
    graph = quantize(model, inputs, config)
    found = [d for d in decisions_of(graph) if d.weights]
    assert [(d.outcome, d.activations, len(d.weights)) for d in found] == [("quantized", False, 2)]
    assert signal_to_noise(model(*inputs), graph(*inputs)) > EIGHT_BITS
    kinds = [op.kind for op in lowered_operations(graph, inputs)]
    assert "constexpr_affine_dequantize" in kinds
    assert "quantize" not in kinds


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_steps_of_recurrent_layers_store_int8_matrices(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    cell = kind(6, 16)
    inputs = torch.randn(4, 6), torch.randn(4, 16)
    model = Two(lambda x, h: cell(x, (h, h))[0] if kind is nn.LSTMCell else cell(x, h), cell)
    graph = quantize(model, inputs)
    (found,) = (d for d in decisions_of(graph) if d.weights)
    assert (found.outcome, found.activations) == ("quantized", False)
    assert found.weights == ("cell.weight_ih", "cell.weight_hh")
    assert signal_to_noise(model(*inputs), graph(*inputs)) > EIGHT_BITS
    kinds = [op.kind for op in lowered_operations(graph, inputs)]
    assert kinds.count("constexpr_affine_dequantize") == 2
    assert "quantize" not in kinds


class Two(nn.Module):
    """A function of two inputs that calls a module."""

    def __init__(self, function: Callable[..., Tensor], cell: nn.Module) -> None:
        super().__init__()
        self.function, self.cell = function, cell

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.function(x, h)


def test_rows_of_an_embedding_have_their_own_scales_and_what_is_looked_up_stays_float() -> None:
    model = nn.Sequential(nn.Embedding(10, 8), nn.LayerNorm(8))
    inputs = (torch.tensor([[1, 2], [3, 9]]),)
    graph = quantize(model, inputs)
    embedding = call(graph, aten.embedding)
    assert embedding.args[0].args[3] == 0
    assert all(user.target is aten.layer_norm.default for user in embedding.users)
    kinds = [op.kind for op in lowered_operations(graph, inputs)]
    assert kinds.count("constexpr_affine_dequantize") == 1
    assert "quantize" not in kinds


def test_a_bilinear_upsampling_is_read_with_the_scale_of_its_input() -> None:
    model = behind_conv(lambda s, x: s.a(F.interpolate(x, scale_factor=2, mode="bilinear")), a=nn.Conv2d(4, 2, 1))
    graph = quantize(model, IMAGE)
    upsampling = call(graph, aten.upsample_bilinear2d)
    assert input_qparams(upsampling) == output_qparams(upsampling)
