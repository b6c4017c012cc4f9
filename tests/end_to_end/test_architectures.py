"""Real architectures, quantized, lowered and run: the `.pte` agrees with the converted graph."""

import pytest
from models import build, signal_to_noise

from partitioner import host

from .pipeline import W8, W8A8, lower

FLOAT32 = 50.0
"""Decibels under `float32`: program and graph hold the same constants, so only the float16 outputs differ (74 dB)."""

STORAGE16 = 30.0
"""Decibels under `storage16`: rounding to float16 moves a few values across a quantization step."""


@pytest.mark.parametrize(
    ("name", "config"),
    [
        pytest.param("bert", W8A8, id="bert-w8a8"),
        pytest.param("bert", W8, id="bert-w8"),
        pytest.param("vit", W8A8, id="vit-w8a8"),
        pytest.param("vit", W8, id="vit-w8"),
        pytest.param("resnet", W8A8, id="resnet-w8a8"),
        pytest.param("unet", W8A8, id="unet-w8a8"),
        pytest.param("unet", W8, id="unet-w8"),
        pytest.param("mobilevit", W8A8, id="mobilevit-w8a8"),
        pytest.param("mobilevit", W8, id="mobilevit-w8", marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", W8, id="mobilenet_v2-w8", marks=pytest.mark.slow),
    ],
)
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
