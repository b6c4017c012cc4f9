"""Programs that were exported with inputs in another memory layout."""

from collections.abc import Callable

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from helpers.lowering import Function
from torch import Tensor, nn

from partitioner import CoreMLPartitioner, host, lower
from partitioner.errors import UnsupportedOpError

IMAGE = torch.linspace(-1, 1, 144).reshape(2, 3, 4, 6)
VOLUME = torch.linspace(-1, 1, 288).reshape(2, 3, 4, 6, 2)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    return nn.Sequential(*layers).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "a network": network,
    "an addition": lambda: Function(lambda x: x + 1),
    "beside an operation outside Core ML": lambda: Function(lambda x: torch.asinh(x) + x),
    "flattened": lambda: Function(lambda x: x.reshape(2, 3, 24) @ torch.ones(24, 2)),
    "made contiguous": lambda: Function(lambda x: x.contiguous() * 2),
    "unused": lambda: Function(lambda x: torch.ones(2) * 2),
}


@pytest.mark.parametrize("name", MODELS)
def test_channels_last_images(name: str) -> None:
    model, x = MODELS[name](), IMAGE.to(memory_format=torch.channels_last)
    program = torch.export.export(model, (x,))
    edge = to_edge_transform_and_lower(program, partitioner=[CoreMLPartitioner()]).to_executorch()
    for buffer in (lower(program).buffer, edge.buffer):
        torch.testing.assert_close(host.run(buffer, x)[0], model(x).detach(), rtol=2e-3, atol=2e-3)


def test_channels_last_volumes() -> None:
    x = VOLUME.to(memory_format=torch.channels_last_3d)
    lowered = lower(torch.export.export(nn.Conv3d(3, 4, 2).eval(), (x,)))
    assert [rejection.op for rejection in lowered.rejections] == ["dim_order_ops._clone_dim_order.default"]


@pytest.mark.parametrize("x", [IMAGE.permute(0, 2, 1, 3), IMAGE.flatten(1).t()], ids=["image", "matrix"])
def test_permuted_inputs_are_refused_with_a_call_that_mends_it(x: Tensor) -> None:
    model = Function(lambda x: x * 2)
    with pytest.raises(UnsupportedOpError, match=r"'inputs_0': \(.*\n.*\(x.contiguous\(\),\)\)"):
        lower(torch.export.export(model, (x,)))
    buffer = lower(torch.export.export(model, (x.contiguous(),))).buffer
    torch.testing.assert_close(host.run(buffer, x.contiguous())[0], x * 2, rtol=1e-3, atol=1e-3)
