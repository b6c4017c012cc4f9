"""Real architectures lower to one delegate that computes what torch computes."""

import copy

import pytest
import torch
from helpers.lowering import blob, calls, lower
from helpers.models import ARCHITECTURES, build, signal_to_noise
from torch import nn

from partitioner import host


@pytest.fixture(scope="module", params=ARCHITECTURES)
def lowered(request: pytest.FixtureRequest):
    model, inputs = build(request.param)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    manager = lower(model, inputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        return manager, model, inputs, model(*inputs)


def test_whole_graph_is_one_delegate(lowered) -> None:
    manager, *_ = lowered
    assert calls(manager) == {"executorch_call_delegate": 1}


def rounded(model: nn.Module, values: bool) -> nn.Module:
    """The model with its parameters, and on request the result of every layer, rounded to float16."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    for layer in model.modules():
        if values and not list(layer.children()):
            layer.register_forward_hook(lambda _layer, _inputs, output: output.half().float())
    return model


# Rounding constants leaves more than 50 dB and rounding all values more than 30 dB, unless the network amplifies
# noise; then torch loses as much with the same values rounded, give or take half of the noise.
@pytest.mark.parametrize(("policy", "decibels"), [("float32", 50), ("storage16", 30)])
def test_delegate_agrees_with_torch(lowered, policy: str, decibels: float) -> None:
    manager, model, inputs, expected = lowered
    (result,) = host.load(blob(manager), policy=policy).run(list(inputs))
    with torch.no_grad():
        attainable = signal_to_noise(expected, rounded(model, values=policy == "storage16")(*inputs))
    assert signal_to_noise(expected, result) >= min(decibels, attainable - 3)
