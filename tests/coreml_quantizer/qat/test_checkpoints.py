"""Checkpoints: of every kind of weight they resume bit for bit, and those of something else are refused."""

import copy

import pytest
import torch
from helpers.trained_networks import batches, everything, loss_of
from torch import nn

from coreml_quantizer import LayerConfig, LinearQuantizer, QuantizerConfig, QuantizerError, WeightConfig, presets
from coreml_quantizer.qat.quantizers.estimated import FakeQuantize

from .test_linear_quantizer import CONFIG, EXAMPLE
from .test_prepare_qat import CONFIGS, prepared_for

State = dict[str, torch.Tensor]


def run(steps: range, quantizer: LinearQuantizer, model: nn.Module) -> None:
    for step in steps:
        torch.manual_seed(step)
        model.zero_grad()
        loss_of(model(batches(6)[step]), batches(6)[step]).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.02 * parameter.grad
        quantizer.step()


def made(config: object) -> tuple[LinearQuantizer, nn.Module]:
    quantizer = LinearQuantizer(everything(), config)
    return quantizer, quantizer.prepare(EXAMPLE)


def saved(config: object) -> State:
    quantizer, model = made(config)
    run(range(3), quantizer, model)
    return copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("name", ["learnable", pytest.param("block", marks=pytest.mark.slow), "lut2"])
def test_training_resumes_bit_exactly(name: str) -> None:
    config = CONFIGS[name]
    quantizer, model = made(config)
    run(range(3), quantizer, model)
    state = copy.deepcopy(model.state_dict())
    run(range(3, 6), quantizer, model)
    resumed, other = made(config)
    other.load_state_dict(state)
    run(range(3, 6), resumed, other)
    expected, found = model.state_dict(), other.state_dict()
    assert expected.keys() == found.keys()
    assert not [key for key, value in expected.items() if not torch.equal(value, found[key])]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"global_config": {"weight_dtype": "qint4"}}, ["'stem_0_weight' was FakeQuantize int8", "int4"]),
        ({"global_config": {"weight_per_channel": False}}, ["PerChannel", "PerTensor"]),
        ({"global_config": {"quantization_scheme": "affine"}}, ["symmetric", "affine"]),
        ({"global_config": {"algorithm": "learnable"}}, ["LearnableFakeQuantize", "it lacks"]),
        (presets.w8(), ["tensors that the model has not, such as"]),
        (QuantizerConfig(LayerConfig(WeightConfig("lut2"), None)), ["was FakeQuantize int8", "lut2"]),
    ],
    ids=["int4", "per-tensor", "affine", "learnable", "weight-only", "table"],
)
def test_a_checkpoint_of_another_configuration_is_refused(config: object, words: list[str]) -> None:
    _, model = made(config)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(QuantizerError, match="Nothing was loaded") as caught:
        model.load_state_dict(saved(CONFIG))
    for word in words:
        assert word in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_of_another_model_is_refused() -> None:
    wider = everything()
    wider.head = nn.Linear(7, 6)
    model = LinearQuantizer(wider, CONFIG).prepare(EXAMPLE)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(QuantizerError, match=r"'head.weight' has shape \(5, 7\) and should have \(6, 7\)"):
        model.load_state_dict(saved(CONFIG))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_graphs_of_pt2e_refuse_them_too() -> None:
    prepared, _ = prepared_for({"global_config": {"weight_dtype": "qint4"}})
    state = prepared_for({"global_config": {"quantization_scheme": "symmetric"}})[0].state_dict()
    with pytest.raises(RuntimeError, match="'stem_0_weight' was FakeQuantize int8"):
        prepared.load_state_dict(state)


def test_milestones_may_change() -> None:
    quantizer, model = made({"global_config": {"quantization_scheme": "symmetric", "milestones": [0, 2, 4, 4]}})
    model.load_state_dict(saved(CONFIG))
    run(range(3, 6), quantizer, model)
    assert {module.observes for module in model.modules() if isinstance(module, FakeQuantize)} == {False}
