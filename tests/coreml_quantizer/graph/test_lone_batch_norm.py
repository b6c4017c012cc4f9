"""Batch norms that fold into nothing become a multiplication and an addition, quantized as one block."""

import time

import pytest
import torch
from helpers.densenet import DenseNet
from helpers.graphs import WEIGHT_ONLY, call, calls, is_dequantized, output_qparams, prepare, quantize
from helpers.models import settle, signal_to_noise
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from coreml_quantizer.graph.lone_batch_norm import rewrite_lone_batch_norms
from coreml_quantizer.placement.decisions import decisions_of

aten = torch.ops.aten


def trained(norm: nn.Module) -> nn.Module:
    """Gives a batch norm statistics and parameters that are neither zero nor one."""
    generator = torch.Generator().manual_seed(0)
    for name, value in norm.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + (0.0 if name.endswith("bias") else 0.1))
    return norm.eval()


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(4), (8, 4)),
        (nn.BatchNorm1d(4), (2, 4, 6)),
        (nn.BatchNorm2d(4), (2, 4, 5, 6)),
        (nn.BatchNorm3d(4), (2, 4, 3, 2, 5)),
        (nn.BatchNorm2d(4, affine=False), (2, 4, 5, 6)),
        (nn.BatchNorm2d(4, eps=0.1), (2, 4, 5, 6)),
    ],
    ids=["2d", "3d", "4d", "5d", "without-parameters", "eps"],
)
def test_the_constants_are_exact_up_to_rounding(norm: nn.Module, shape: tuple[int, ...]) -> None:
    norm = trained(norm)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    graph = torch.export.export(norm, (x,)).module()
    rewrite_lone_batch_norms(graph)
    graph.recompile()
    assert not calls(graph, aten.batch_norm)
    expected = trained(norm).double()(x.double())
    # Three roundings of float32: of the scale, of the product, and of the shift and the sum.
    bound = 2**-22 * float(expected.abs().max() + x.abs().max() * 4)
    torch.testing.assert_close(graph(x).double(), expected, rtol=0, atol=bound)


def test_a_batch_norm_in_training_is_left() -> None:
    graph = torch.export.export(nn.BatchNorm2d(4).train(), (torch.randn(2, 4, 3, 3),)).module()
    rewrite_lone_batch_norms(graph)
    assert len(calls(graph, aten.batch_norm)) == 1


def test_half_precision_keeps_its_type() -> None:
    norm, x = trained(nn.BatchNorm2d(4)).half(), torch.randn(2, 4, 3, 3).half()
    graph = torch.export.export(norm, (x,)).module()
    rewrite_lone_batch_norms(graph)
    graph.recompile()
    assert graph(x).dtype == torch.float16
    torch.testing.assert_close(graph(x), norm(x), rtol=2**-8, atol=2**-8)


def test_it_is_one_block_with_its_activation_and_keeps_its_module() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), trained(nn.BatchNorm2d(4)), nn.ReLU(), nn.Conv2d(4, 2, 1))
    image = (torch.randn(2, 3, 8, 8),)
    graph = quantize(model, image)
    mul, add = call(graph, aten.mul), call(graph, aten.add)
    assert is_dequantized(mul.args[0])
    assert list(mul.users) == [add]
    assert [user.target for user in add.users] == [aten.relu.default]
    output_qparams(calls(graph, aten.relu)[1])
    assert {d.module for d in decisions_of(graph) if d.op in ("aten.mul", "aten.add")} == {"2"}
    assert signal_to_noise(model(*image), graph(*image)) > 30


def test_a_batch_norm_behind_a_convolution_folds_into_it() -> None:
    graph = quantize(nn.Sequential(nn.Conv2d(3, 4, 3), trained(nn.BatchNorm2d(4))), (torch.randn(2, 3, 8, 8),))
    assert not calls(graph, aten.mul)
    assert not calls(graph, aten.batch_norm)


@pytest.mark.parametrize("config", [None, WEIGHT_ONLY], ids=["w8a8", "w8"])
def test_densenet_121_converts_without_tracing_patterns(config: object) -> None:
    """torchao takes a batch norm in the graph for one of quantization-aware training: 16 s to 29 s."""
    torch.manual_seed(0)
    inputs: tuple[Tensor, ...] = (torch.randn(1, 3, 64, 64),)
    model = DenseNet()

    def seconds() -> float:
        prepared = prepare(model, inputs, config)
        prepared(*inputs)
        # Of this thread: those that help it spin while another process has their core.
        start = time.thread_time()
        convert_pt2e(prepared)
        return time.thread_time() - start

    assert min(seconds() for _ in range(2)) <= 3.0


def test_densenet_keeps_its_accuracy() -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(4, 3, 32, 32),)
    model = settle(DenseNet((2, 2), growth=8, stem=16), inputs)
    assert signal_to_noise(model(*inputs), quantize(model, inputs)(*inputs)) > 20
