"""A trained network agrees with its `.pte` under both policies, however many quantizers it has in a row."""

import pytest
import torch
from helpers.models import FirstOutput, signal_to_noise
from helpers.pipeline import lower
from helpers.trained import Trained, mobilevit
from torch import nn

from coreml_quantizer import presets
from partitioner import host

FLOAT32 = 50.0
STORAGE16 = 30.0
BATCH = 50


@pytest.fixture(scope="module")
def trained() -> Trained:
    return mobilevit()


def test_it_is_trained(trained: Trained) -> None:
    right = trained.model(trained.images).argmax(1) == trained.labels
    assert right.double().mean() >= 0.8


@pytest.mark.parametrize("output", ["logits", pytest.param("last_hidden_state", marks=pytest.mark.slow)])
def test_mobilevit_agrees_with_its_converted_graph(trained: Trained, output: str) -> None:
    network: nn.Module = trained.model if output == "logits" else FirstOutput(trained.model.model.mobilevit)
    images = trained.images[:BATCH]
    lowered = lower(network, (images,), presets.w8a8(), calibration=trained.calibration.split(BATCH))
    assert lowered.delegates == 1
    assert not lowered.left_over
    with torch.no_grad():
        expected = lowered.converted(images)
    for policy, bound in (("float32", FLOAT32), ("storage16", STORAGE16)):
        (result,) = host.run(lowered.pte, images, policy=policy)
        assert signal_to_noise(expected, result) >= bound, policy
