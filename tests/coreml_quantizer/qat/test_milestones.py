"""Milestones mean what they mean in coremltools."""

import pytest
import torch
from helpers.trained_networks import batches, everything
from torch import nn
from torch.fx import GraphModule

from coreml_quantizer import ConfigError, CoreMLQuantizer
from coreml_quantizer.qat.layers.batch_norm import BatchNorm
from coreml_quantizer.qat.quantizers.base import FakeQuantizer

from .test_prepare_qat import prepared_for


def config(*milestones: int) -> dict[str, object]:
    return {"global_config": {"quantization_scheme": "symmetric", "milestones": list(milestones)}}


def state(prepared: GraphModule) -> tuple[set[bool], set[bool], set[bool]]:
    quantizers = [module for module in prepared.modules() if isinstance(module, FakeQuantizer)]
    norms = [module for module in prepared.modules() if isinstance(module, BatchNorm)]
    return (
        {quantizer.observes for quantizer in quantizers},
        {quantizer.quantizes for quantizer in quantizers},
        {norm.frozen for norm in norms},
    )


def test_each_milestone_acts_at_its_step() -> None:
    prepared, quantizer = prepared_for(config(1, 2, 4, 3))
    seen = [state(prepared)]
    for batch in batches(6):
        prepared(batch)
        quantizer.step()
        seen.append(state(prepared))
    off, on = {False}, {True}
    assert seen == [
        (off, off, off),
        (off, off, off),
        (on, off, off),
        (on, on, off),
        (on, on, on),
        (off, on, on),
        (off, on, on),
    ]


def test_minus_one_is_never() -> None:
    prepared, quantizer = prepared_for(config(0, 1, -1, -1))
    for batch in batches(4):
        prepared(batch)
        quantizer.step()
    assert state(prepared) == ({True}, {True}, {False})


def test_without_milestones_everything_is_on_and_step_changes_nothing() -> None:
    prepared, quantizer = prepared_for({"global_config": {"quantization_scheme": "symmetric"}})
    before = state(prepared)
    quantizer.step()
    assert before == state(prepared) == ({True}, {True}, {False})


def test_before_the_first_milestone_the_model_is_the_float_model() -> None:
    model = everything()
    prepared, _ = prepared_for(config(0, 1, 2, 3))
    (batch,) = batches(1)
    torch.manual_seed(3)
    expected = model(batch)
    torch.manual_seed(3)
    assert torch.allclose(prepared(batch), expected, atol=1e-6)


def test_steps_agree_with_coremltools() -> None:
    """The same model, seed and milestones: both turn the same things on and off after the same calls of step()."""
    from coremltools.optimize.torch.quantization import LinearQuantizer, LinearQuantizerConfig

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    theirs = LinearQuantizer(model, LinearQuantizerConfig.from_dict(config(1, 2, 4, 3)))
    reference = theirs.prepare((torch.randn(2, 3, 8, 8),))
    prepared, ours = prepared_for(config(1, 2, 4, 3), nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    for batch in batches(6):
        reference(batch)
        prepared(batch)
        theirs.step()
        ours.step()
        switches = [
            {bool(value) for name, value in reference.named_buffers() if name.endswith(suffix)}
            for suffix in ("observer_enabled", "fake_quant_enabled")
        ]
        assert tuple(switches) == state(prepared)[:2]


def test_milestones_of_one_module() -> None:
    prepared, quantizer = prepared_for(
        {**config(0, 0, -1, -1), "module_name_configs": {"head": {"milestones": [2, 2, -1, -1]}}}
    )
    quantizer.step()
    by_name = {q.tensor_name: q.quantizes for q in prepared.modules() if isinstance(q, FakeQuantizer)}
    assert by_name.pop("head_weight") is False
    assert by_name["mix_weight"] is True


@pytest.mark.parametrize(
    ("milestones", "words"),
    [
        ([0, 1, 2], ["4 step counts"]),
        ([3, 1, 4, 5], ["'fake quantization on' comes before 'observers on'"]),
        ([-1, 1, 4, 5], ["'fake quantization on' comes before 'observers on'"]),
        ([3, 3, 1, -1], ["'observers off' comes before 'observers on'"]),
        ([0, 1, 2, -2], ["-1 for never"]),
    ],
)
def test_milestones_that_make_no_sense_are_refused(milestones: list[int], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        CoreMLQuantizer({"global_config": {"milestones": milestones}})
    for word in ["milestones", *words]:
        assert word in str(caught.value)
