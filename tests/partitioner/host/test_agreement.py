"""One call that says what a program lost."""

from pathlib import Path

import pytest
import torch
from helpers.lowering import Function
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import CoreMLQuantizer, presets
from partitioner import host, lower

X = torch.linspace(-1, 1, 32).reshape(4, 8)


@pytest.fixture(scope="module")
def models() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    prepared = prepare_pt2e(torch.export.export(model, (X,)).module(), CoreMLQuantizer(presets.w8a8()))
    prepared(X)
    return model, convert_pt2e(prepared)


def test_it_compares_with_both_under_every_policy(models, tmp_path: Path) -> None:
    model, converted = models
    lowered = lower(torch.export.export(converted, (X,)))
    found = host.measure_agreement(lowered, [X], converted=converted, model=model)
    assert found.bytes == len(lowered.buffer)
    kinds = {(distance.reference, distance.policy) for distance in found.distances}
    assert len(kinds) == len(found.distances) == 4
    decibels = {(distance.reference, distance.policy): distance.decibels for distance in found.distances}
    assert decibels["converted graph", "float32"] > 60
    assert 20 < decibels["float model", "float32"] < 60
    assert found.warnings == ()
    assert "normal for storage16" in str(found)
    path = tmp_path / "model.pte"
    path.write_bytes(lowered.buffer)
    assert host.measure_agreement(path, [X], model=model).bytes == found.bytes


def test_the_distance_is_what_it_says(models) -> None:
    model, _ = models
    lowered = lower(torch.export.export(model, (X,)))
    (result,) = host.run(lowered.buffer, X, policy="float32")
    found = host.measure_agreement(lowered, [X], model=lambda x: result + 0.5, policies=["float32"])
    (distance,) = found.distances
    assert distance.largest == pytest.approx(0.5, rel=1e-5)
    assert distance.decibels == pytest.approx(float(10 * torch.log10((result + 0.5).square().mean() / 0.25)), abs=1e-3)
    assert "further from the float model" in str(found)


def test_outputs_that_vanish_are_said_aloud() -> None:
    model = Function(lambda x: x * 1e-5 * 1e-5)
    program = torch.export.export(model, (X,))
    found = host.measure_agreement(lower(program), [X], model=model, policies=["storage16"])
    assert any("zero everywhere" in text and "float16" in text for text in found.warnings)


def test_nothing_to_compare_with_is_refused(models) -> None:
    lowered = lower(torch.export.export(models[0], (X,)))
    with pytest.raises(host.InputError, match="converted="):
        host.measure_agreement(lowered, [X])
    with pytest.raises(host.PolicyError):
        host.measure_agreement(lowered, [X], model=models[0], policies=["half"])
    with pytest.raises(host.InputError, match="1 outputs, and the float model has 2"):
        host.measure_agreement(lowered, [X], model=lambda x: (x, x))
