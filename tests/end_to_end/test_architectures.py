"""Real architectures, quantized, lowered and run: the `.pte` agrees with the converted graph."""

from typing import Any

import pytest
import torch
from helpers.models import build, signal_to_noise
from helpers.pipeline import W8, W8A8, lower
from torch import Tensor

from partitioner import host

FLOAT32 = 50.0
"""Decibels under `float32`: program and graph hold the same constants, so only the float16 outputs differ (74 dB)."""

STORAGE16 = 30.0
"""Decibels under `storage16`: rounding to float16 moves some values across a quantization step."""

TWO_ROUNDINGS = 1.5
"""Decibels between two ways to round to float16: a program rounds at its own operations, not at the graph's nodes."""

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


class HalfRounding(torch.fx.Interpreter):
    """Runs a graph in PyTorch with every value rounded to float16, as a program declares them; no Core ML involved."""

    def run_node(self, node: torch.fx.Node) -> Any:
        value = super().run_node(node)
        return value.half().float() if isinstance(value, Tensor) and value.is_floating_point() else value


@pytest.mark.parametrize(("name", "config"), AMPLIFYING, ids=name_of)
def test_networks_that_amplify_rounding_agree_as_far_as_pytorch_agrees_with_itself(name: str, config: object) -> None:
    """Rounding the input alone to float16, in PyTorch, moves these outputs by as much as quantization itself does.

    A value next to a rounding boundary of a quantizer moves by a whole step, and with random weights a hundred
    quantizers in a row amplify that. What can be asked of the program is that it is no further from the converted
    graph than this graph, evaluated in PyTorch with float16 values, is from itself.
    """
    model, inputs = build(name)
    lowered = lower(model, inputs, config)
    assert lowered.delegates == 1
    assert not lowered.left_over
    with torch.no_grad():
        expected = lowered.converted(*inputs)
        half = signal_to_noise(expected, HalfRounding(lowered.converted).run(*inputs))
    (exact,) = host.run(lowered.pte, *inputs, policy="float32")
    assert signal_to_noise(expected, exact) >= FLOAT32
    (rounded,) = host.run(lowered.pte, *inputs, policy="storage16")
    assert signal_to_noise(expected, rounded) >= min(STORAGE16, half - TWO_ROUNDINGS)
