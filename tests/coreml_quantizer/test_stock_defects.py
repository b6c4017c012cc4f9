"""Thirteen ways in which the Core ML quantizer of ExecuTorch 1.5 goes wrong, and what happens here instead.

One test a defect, in the words of a user. Some have tests in more detail elsewhere, which are named.
"""

import time
from collections.abc import Callable

import pytest
import torch
from helpers.graphs import (
    IMAGE,
    QDQ,
    ROWS,
    WEIGHT_ONLY,
    call,
    calls,
    input_qparams,
    is_dequantized,
    output_qparams,
    prepare,
    quantize,
)
from helpers.models import ARCHITECTURES, build, signal_to_noise
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from coreml_quantizer import CoreMLQuantizer, ScopeError
from coreml_quantizer.placement.decisions import Decision, decisions_of

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Case(nn.Module):
    """A forward function with the modules it needs."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def decisions(model: nn.Module, inputs: tuple[Tensor, ...], config: object = None) -> dict[str, Decision]:
    return {decision.node: decision for decision in decisions_of(prepare(model, inputs, config))}


def test_1_annotating_takes_no_minute_with_names_or_without() -> None:
    """There: 37 s to 73 s a call, 150 s with two names. See test_prepare_time.py and benchmarks/prepare.py."""
    model, inputs = build("mobilenet_v2")
    graph = torch.export.export(model, inputs).module()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)][:2]
    config = {"global_config": {}, "module_name_configs": {key: {"activation_observer": "min_max"} for key in names}}
    start = time.process_time()
    CoreMLQuantizer(config).annotate(graph)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_2_integer_arithmetic_is_not_quantized(name: str) -> None:
    """There: `fake_quantize... not implemented for 'Long'` on every transformer."""
    model, inputs = build(name)
    graph = quantize(model, inputs)
    assert {node.args[0].meta["val"].dtype for node in calls(graph, QDQ.quantize_per_tensor)} == {torch.float32}
    assert signal_to_noise(model(*inputs), graph(*inputs)) > 10


def test_3_a_named_layer_gets_its_own_configuration() -> None:
    """There: the named layer stays float whatever its configuration says, and unknown names pass silently."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    config = {
        "global_config": {},
        "module_name_configs": {"0": {"weight_dtype": "quint8", "weight_per_channel": False}},
    }
    first, second = calls(quantize(model, ROWS, config), aten.linear)
    assert first.args[1].target is QDQ.dequantize_per_tensor.default
    assert first.args[1].args[3:6] == (0, 255, torch.uint8)
    assert second.args[1].target is QDQ.dequantize_per_channel.default
    with pytest.raises(ScopeError, match="7"):
        prepare(model, ROWS, {"global_config": {}, "module_name_configs": {"7": None}})


@pytest.mark.parametrize("strict", [False, True])
def test_4_a_type_is_found_in_both_kinds_of_export(strict: bool) -> None:
    """There: `module_type_configs` does nothing under non-strict export."""
    config = {"global_config": {}, "module_type_configs": {"Linear": None}}
    graph = quantize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)), IMAGE, config, strict)
    assert is_dequantized(call(graph, aten.conv2d).args[1])
    assert call(graph, aten.linear).args[1].op == "get_attr"


@pytest.mark.parametrize("strict", [False, True])
def test_5_pools_and_flatten_share_in_both_kinds_of_export(strict: bool) -> None:
    """There: they are never annotated under non-strict export."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 2))
    graph = quantize(model, IMAGE, None, strict)
    qparams = output_qparams(call(graph, aten.conv2d))
    for op in (aten.max_pool2d, aten.avg_pool2d, aten.flatten):
        assert input_qparams(call(graph, op)) == qparams == output_qparams(call(graph, op))


def test_6_a_module_called_twice_is_quantized_twice() -> None:
    """There: at one call only."""
    graph = quantize(Case(lambda s, x: s.a(s.a(x).relu()), a=nn.Linear(6, 6)), ROWS)
    for linear in calls(graph, aten.linear):
        assert is_dequantized(linear.args[0])
        assert is_dequantized(linear.args[1])


def test_7_four_bits_float_weights_every_observer_and_no_configuration_mean_what_they_say() -> None:
    """There: qint4 is 8 bit, float weights drop activations too, ema_min_max and None raise.

    `algorithm` and `milestones` are about training; see test_config.py for what is said of them.
    """
    graph = quantize(nn.Linear(6, 4), ROWS, {"global_config": {"weight_dtype": "qint4"}})
    assert call(graph, aten.linear).args[1].args[4:] == (-8, 7, torch.int8)
    graph = quantize(nn.Linear(6, 4), ROWS, {"global_config": {"weight_dtype": "float32"}})
    assert call(graph, aten.linear).args[1].op == "get_attr"
    input_qparams(call(graph, aten.linear))
    for observer in ("ema_min_max", "min_max", "moving_average_min_max"):
        graph = quantize(nn.Linear(6, 4), ROWS, {"global_config": {"activation_observer": observer}})
        input_qparams(call(graph, aten.linear))
    CoreMLQuantizer(None)


def test_8_bounded_activations_have_the_scale_of_their_range() -> None:
    """There: a sigmoid gets the scale that was observed, 0.0031, instead of 1/256."""
    for activation, op, qparams in (
        (nn.Sigmoid(), aten.sigmoid, (1 / 256, 0)),
        (nn.Hardsigmoid(), aten.hardsigmoid, (1 / 256, 0)),
        (nn.Tanh(), aten.tanh, (2 / 256, 128)),
    ):
        assert output_qparams(call(quantize(nn.Sequential(nn.Linear(6, 4), activation), ROWS), op)) == qparams
    attention = Case(lambda s, x: torch.softmax(s.a(x), -1) @ s.a(x).t(), a=nn.Linear(6, 6))
    assert input_qparams(call(quantize(attention, ROWS), aten.matmul)) == (1 / 256, 0)


@pytest.mark.parametrize("value", [-torch.inf, torch.finfo(torch.float32).min, -1e4])
def test_9_masks_never_set_a_range(value: float) -> None:
    """There: -inf asserts, finfo.min makes an infinite scale, -1e4 costs 0.65 on a softmax. See test_accuracy.py."""

    def forward(self: Case, x: Tensor, keep: Tensor) -> Tensor:
        scores = self.a(x) @ x.t()
        return torch.softmax(scores + torch.zeros(4, 4).masked_fill(keep == 0, value), -1)

    model, inputs = Case(forward, a=nn.Linear(6, 6)), (*ROWS, torch.ones(4, 4).tril())
    result = quantize(model, inputs)(*inputs)
    assert float((result - model(*inputs)).abs().max()) < 0.02
    assert torch.equal(result.triu(1), torch.zeros(4, 4))


def test_10_a_skipped_layer_leaves_the_next_one_as_it_was() -> None:
    """There: the next layer turns weight-only."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    first, second = calls(quantize(model, ROWS, {"global_config": {}, "module_name_configs": {"0": None}}), aten.linear)
    assert first.args[1].op == "get_attr"
    assert is_dequantized(second.args[0])
    assert is_dequantized(second.args[1])
    output_qparams(second)


NEVER_ANNOTATED_THERE: dict[str, tuple[nn.Module, tuple[Tensor, ...], str]] = {
    "conv_transpose": (nn.ConvTranspose2d(3, 4, 2), IMAGE, "aten.conv_transpose2d"),
    "padding-same": (nn.Conv2d(3, 4, 3, padding="same"), IMAGE, "aten.conv2d"),
    "embedding": (nn.Embedding(6, 4), (torch.tensor([1, 2]),), "aten.embedding"),
    "attention": (
        Case(
            lambda s, x: nn.functional.scaled_dot_product_attention(*s.a(x).view(4, 3, 1, 6).unbind(1)),
            a=nn.Linear(6, 18),
        ),
        ROWS,
        "aten.scaled_dot_product_attention",
    ),
    "cat": (Case(lambda s, x: torch.cat([s.a(x), s.a(x).relu()]), a=nn.Linear(6, 4)), ROWS, "aten.cat"),
    "bmm": (Case(lambda s, x: torch.bmm(x[None], s.a(x)[None].mT), a=nn.Linear(6, 6)), ROWS, "aten.bmm"),
    "einsum": (Case(lambda s, x: torch.einsum("ij,kj->ik", x, s.a(x)), a=nn.Linear(6, 6)), ROWS, "aten.einsum"),
    "sub": (Case(lambda s, x: s.a(x) - x, a=nn.Linear(6, 6)), ROWS, "aten.sub"),
    "div": (Case(lambda s, x: s.a(x) / 3.0, a=nn.Linear(6, 6)), ROWS, "aten.div"),
    "prelu": (nn.Sequential(nn.Linear(6, 4), nn.PReLU()), ROWS, "aten.prelu"),
    "clamp": (Case(lambda s, x: s.a(x).clamp(0, 1), a=nn.Linear(6, 6)), ROWS, "aten.clamp"),
    "lstm": (Case(lambda s, x: s.a(x)[0], a=nn.LSTM(6, 4)), ROWS, "aten.lstm"),
    "lone-batch-norm": (nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.BatchNorm1d(4)), ROWS, "aten.mul"),
    "lone-activation": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.ReLU()), IMAGE, "aten.relu"),
    "same-operand": (Case(lambda s, x: s.a(x).square() + s.a(x) * s.a(x), a=nn.Linear(6, 6)), ROWS, "aten.mul"),
}


@pytest.mark.parametrize("name", NEVER_ANNOTATED_THERE)
def test_11_operators_that_are_never_annotated_there(name: str) -> None:
    model, inputs, op = NEVER_ANNOTATED_THERE[name]
    found = [decision for decision in decisions(model.eval(), inputs).values() if decision.op == op]
    assert found
    assert all(decision.outcome != "float" for decision in found)
    graph = quantize(model, inputs)
    assert signal_to_noise(model(*inputs), graph(*inputs)) > 25


@pytest.mark.parametrize("layer", [nn.LayerNorm(6), nn.Softmax(-1)], ids=["layer_norm", "softmax"])
def test_11_norms_and_softmax_are_float_for_a_reason(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(6, 6), layer, nn.Linear(6, 6))
    (decision,) = (d for d in decisions(model, ROWS).values() if d.op in ("aten.layer_norm", "aten.softmax"))
    assert decision.outcome == "float"
    assert "bits" in decision.reason


def test_11_layer_scale_is_no_activation() -> None:
    """There: constants such as a layer scale are quantized as per-tensor uint8 activations."""

    class LayerScale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)
            self.gamma = nn.Parameter(torch.full((6,), 1e-5))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(x) * self.gamma

    mul = call(quantize(LayerScale(), ROWS), aten.mul)
    assert is_dequantized(mul.args[0])
    assert mul.args[1].op == "get_attr"


def test_12_calibration_sees_the_values_of_the_float_model() -> None:
    """There: it runs through fake-quantizers, slowly, and later layers see quantized inputs. See test_observers.py."""
    model, inputs = build("mobilenet_v3")
    prepared = prepare(model, inputs)
    with torch.no_grad():
        expected = model(*inputs)
        torch.testing.assert_close(prepared(*inputs), expected, rtol=0, atol=2**-9 * float(expected.abs().max()))


@pytest.mark.parametrize("peak", [1e-3, 1e-5, 1e-7])
def test_13_tiny_outputs_keep_their_resolution(peak: float) -> None:
    """There: a range below 255 * eps quantizes to all zeros."""
    model = nn.Linear(6, 4, bias=False)
    with torch.no_grad():
        model.weight.mul_(peak)
    graph = quantize(model, ROWS)
    assert signal_to_noise(model(*ROWS), graph(*ROWS)) > 30


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weight_only_needs_no_sample(name: str) -> None:
    """It is as good as rounding the weights of the model itself, whose noise a deep random network amplifies alike."""
    model, inputs = build(name)
    expected = model(*inputs)
    found = convert_pt2e(prepare(model, inputs, WEIGHT_ONLY))(*inputs)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                scale = module.weight.abs().amax(tuple(range(1, module.weight.ndim)), keepdim=True) / 127.5
                module.weight.copy_((module.weight / scale).round().clamp(-128, 127) * scale)
    # Batch norms fold before rounding, so the two round differently: twice the noise power at most.
    assert signal_to_noise(expected, found) >= signal_to_noise(expected, model(*inputs)) - 3
