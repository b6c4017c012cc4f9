"""Transposed convolutions with ``output_padding``, which Core ML does not have."""

import pytest
import torch
from helpers.lowering import lower as lower_to_edge
from torch import nn
from torch.export import Dim

from partitioner import CoreMLPartitioner, host, lower

KINDS = {1: (nn.ConvTranspose1d, (7,)), 2: (nn.ConvTranspose2d, (5, 4)), 3: (nn.ConvTranspose3d, (3, 4, 2))}
ARGUMENTS = {
    "more than the padding": {"kernel_size": 16, "stride": 8, "padding": 2, "output_padding": 5},
    "as much as the padding": {"kernel_size": 3, "stride": 3, "padding": 2, "output_padding": 2},
    "less than the padding": {"kernel_size": 3, "stride": 2, "padding": 3, "output_padding": 1, "dilation": 2},
    "no padding": {"kernel_size": 3, "stride": 2, "output_padding": 1, "bias": False},
    "groups": {"kernel_size": 2, "stride": 4, "padding": 1, "output_padding": 3, "groups": 2},
}


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS.keys())
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_output_padding(spatial: int, arguments: dict) -> None:
    torch.manual_seed(0)
    kind, sizes = KINDS[spatial]
    model = nn.Sequential(kind(4, 6, **arguments), nn.Flatten(1)).eval()
    x = torch.randn(1, 4, *sizes)
    direct = lower(torch.export.export(model, (x,)))
    assert direct.rejections == ()
    for buffer in (direct.buffer, lower_to_edge(model, (x,)).to_executorch().buffer):
        (result,) = host.run(buffer, x)
        torch.testing.assert_close(result, model(x).detach(), rtol=5e-3, atol=5e-3)


def test_output_padding_for_each_dimension_and_without_a_batch() -> None:
    torch.manual_seed(0)
    model = nn.ConvTranspose2d(4, 6, 3, stride=(2, 3), padding=(0, 2), output_padding=(1, 0)).eval()
    x = torch.randn(4, 5, 6)
    (result,) = host.run(lower(torch.export.export(model, (x,))).buffer, x)
    torch.testing.assert_close(result, model(x).detach(), rtol=5e-3, atol=5e-3)


def test_output_padding_of_varying_sizes() -> None:
    torch.manual_seed(0)
    model = nn.ConvTranspose1d(4, 6, 5, stride=3, padding=1, output_padding=2).eval()
    program = torch.export.export(model, (torch.randn(1, 4, 7),), dynamic_shapes=({2: Dim("length", min=2, max=40)},))
    buffer = lower(program).buffer
    for length in (2, 7, 12, 40):
        x = torch.randn(1, 4, length)
        (result,) = host.run(buffer, x)
        torch.testing.assert_close(result, model(x).detach(), rtol=5e-3, atol=5e-3)


def test_it_goes_to_core_ml_as_part_of_a_model() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 2, 3, stride=2, output_padding=1), nn.ReLU()).eval()
    partitioner = CoreMLPartitioner()
    lower_to_edge(model, (torch.randn(1, 3, 4, 4),), partitioner=partitioner)
    assert partitioner.rejections == ()
