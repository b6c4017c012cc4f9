"""Real architectures, quantized, lowered and run: the `.pte` agrees with the converted graph."""

import pytest
import torch
from models import build, signal_to_noise

from partitioner import host

from .pipeline import W8, W8A8, lower

FLOAT32 = 50.0
"""Decibels under `float32`: program and graph hold the same constants, so only the float16 outputs differ (74 dB)."""

STORAGE16 = 30.0
"""Decibels under `storage16`: rounding to float16 moves some values across a quantization step."""

SHALLOW = [
    ("mobilenet_v3", W8),
    ("bert", W8A8),
    ("bert", W8),
    ("vit", W8A8),
    ("vit", W8),
    ("resnet", W8A8),
    ("unet", W8A8),
    ("unet", W8),
]
AMPLIFYING = [
    ("mobilenet_v3", W8A8),
    *(
        pytest.param(name, config, marks=pytest.mark.slow)
        for name in ("mobilevit", "mobilenet_v2")
        for config in (W8A8, W8)
    ),
]


def name_of(value: object) -> str:
    return value if isinstance(value, str) else {id(W8A8): "w8a8", id(W8): "w8"}[id(value)]


@pytest.mark.parametrize(("name", "config"), SHALLOW, ids=name_of)
def test_one_delegate_that_agrees_with_the_converted_graph(name: str, config: object) -> None:
    model, inputs = build(name)
    lowered = lower(model, inputs, config)
    assert lowered.delegates == 1
    assert not lowered.left_over
    expected = lowered.converted(*inputs)
    for policy, bound in (("float32", FLOAT32), ("storage16", STORAGE16)):
        (result,) = host.run(lowered.pte, *inputs, policy=policy)
        assert result.shape == expected.shape
        assert signal_to_noise(expected, result) >= bound, policy


@pytest.mark.parametrize(("name", "config"), AMPLIFYING, ids=name_of)
def test_noisy_random_networks_agree_as_far_as_their_own_noise_lets_them(name: str, config: object) -> None:
    """With random weights these are far from their float models once quantized, and float16 rounding is noise as well.

    Rounding before a quantizer flips values by one step, which is quantization noise once more: the result may be as
    far from the converted graph as that is from the float model, plus 3 dB for two independent such errors.
    """
    model, inputs = build(name)
    lowered = lower(model, inputs, config)
    assert lowered.delegates == 1
    assert not lowered.left_over
    with torch.no_grad():
        expected = lowered.converted(*inputs)
        own_noise = signal_to_noise(model(*inputs), expected)
    (exact,) = host.run(lowered.pte, *inputs, policy="float32")
    assert signal_to_noise(expected, exact) >= FLOAT32
    (rounded,) = host.run(lowered.pte, *inputs, policy="storage16")
    assert signal_to_noise(expected, rounded) >= min(STORAGE16, own_noise - 3.0)
