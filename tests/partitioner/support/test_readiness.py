"""Programs in training mode or prepared for quantization only are refused, with the call that is missing."""

from dataclasses import replace

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from helpers.lowering import Function
from helpers.minimal_quantizer import ACTIVATION, WeightedQuantizer, quantized, weight_spec
from torch import nn
from torchao.quantization.pt2e import MinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from partitioner import CoreMLPartitioner, host, lower
from partitioner.errors import UnsupportedOpError

X = torch.linspace(-1, 1, 64).reshape(1, 4, 4, 4)
BOTH_WAYS = pytest.mark.parametrize(
    "way", [lower, lambda program: to_edge_transform_and_lower(program, partitioner=[CoreMLPartitioner()])]
)


def refused(way, model: nn.Module) -> str:
    with pytest.raises(UnsupportedOpError) as error:
        way(torch.export.export(model, (X,)))
    return str(error.value)


@BOTH_WAYS
def test_batch_norms_in_training(way) -> None:
    message = refused(way, nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).train())
    assert "exported in training mode:\n  aten.batch_norm.default (File " in message
    assert "Call model.eval() before torch.export.export" in message


def test_dropouts_that_drop_are_told() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    for training in (True, False):
        notes = lower(torch.export.export(model.train(training), (X,))).report[0].notes
        assert ["results are random" in note for note in notes] == [True] * training


@BOTH_WAYS
def test_attention_with_dropout(way) -> None:
    message = refused(way, Function(lambda x: nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.1)))
    assert "aten.scaled_dot_product_attention.default (" in message
    assert "dropout_p=0.0" in message


def test_norms_without_running_statistics_are_no_training() -> None:
    model = nn.BatchNorm2d(4, track_running_stats=False).eval()
    lowered = lower(torch.export.export(model, (X,)))
    (result,) = host.run(lowered.buffer, X)
    torch.testing.assert_close(result, model(X).detach(), rtol=1e-2, atol=1e-2)


@BOTH_WAYS
def test_prepared_graphs(way) -> None:
    activation = replace(ACTIVATION, observer_or_fake_quant_ctr=MinMaxObserver)
    quantizer = WeightedQuantizer(activation, weight_spec(-127, 127))
    prepared = prepare_pt2e(torch.export.export(nn.Linear(4, 4), (X,)).module(), quantizer)
    prepared(X)
    message = refused(way, prepared)
    assert "was prepared for quantization" in message
    assert "  activation_post_process_0" in message
    assert "Call convert_pt2e(prepared), or LinearQuantizer.finalize()" in message


def test_fake_quantizers_in_a_module() -> None:
    message = refused(lower, Function(lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)))
    assert "aten.fake_quantize_per_tensor_affine.default" in message


def test_converted_graphs_are_finished() -> None:
    model = nn.Linear(4, 4)
    lowered = lower(torch.export.export(quantized(model, (X,)), (X,)))
    (result,) = host.run(lowered.buffer, X)
    torch.testing.assert_close(result, model(X).detach(), rtol=0, atol=0.1)


@BOTH_WAYS
def test_weights_that_torchao_multiplies_as_integers(way) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = nn.Sequential(nn.Linear(4, 4))
    quantize_(model, Int8WeightOnlyConfig())
    message = refused(way, model)
    assert "'0.weight', of Int8WeightOnlyConfig" in message
    assert "quantize_(model, IntxWeightOnlyConfig(torch.int8, PerAxis(0)))" in message
