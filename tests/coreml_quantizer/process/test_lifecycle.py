"""Steps in the wrong order are refused, with the call that is missing."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import CoreMLQuantizer, QuantizerError, calibrate

X = torch.ones(1, 3, 8, 8)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).eval()


def prepared(preset: str = "w8a8") -> GraphModule:
    graph = prepare_pt2e(torch.export.export(model(), (X,)).module(), CoreMLQuantizer(preset))
    calibrate(graph, [X])
    return graph


def output(graph: nn.Module) -> Tensor:
    with torch.no_grad():
        value: Tensor = graph(X)
    return value


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("preset", ["w8a8", "w8", "w4_block32", "lut4"])
def test_exporting_what_is_not_converted_is_refused(preset: str, strict: bool) -> None:
    graph = prepared(preset)
    with pytest.raises(Exception, match=r"prepared for quantization and not converted.*convert_pt2e\(model\)"):
        torch.export.export(graph, (X,), strict=strict)
    exported = torch.export.export(convert_pt2e(graph), (X,), strict=strict)
    assert exported.module()(X).shape == (1, 4)


def test_preparing_twice_is_refused() -> None:
    with pytest.raises(QuantizerError, match="prepared already"):
        prepare_pt2e(prepared(), CoreMLQuantizer())


@pytest.mark.parametrize("again", [False, True], ids=["converted", "exported again"])
def test_quantizing_twice_is_refused(again: bool) -> None:
    graph = convert_pt2e(prepared())
    if again:
        graph = torch.export.export(graph, (X,)).module()
    with pytest.raises(QuantizerError, match=r"quantized already: '.*quantize_per_tensor"):
        prepare_pt2e(graph, CoreMLQuantizer())


def test_activations_may_be_quantized_after_weights() -> None:
    wanted = output(convert_pt2e(prepared("w4_block32")))
    graph = prepare_pt2e(torch.export.export(convert_pt2e(prepared("w4_block32")), (X,)).module(), CoreMLQuantizer())
    calibrate(graph, [X])
    assert (output(convert_pt2e(graph)) - wanted).abs().max() < 0.02 * wanted.abs().max()
