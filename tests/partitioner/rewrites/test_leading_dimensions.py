"""Values of six dimensions of which only the last one matters."""

from collections.abc import Callable

import pytest
import torch
from helpers.lowering import Function, delegates, lower
from helpers.models import signal_to_noise
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import CoreMLQuantizer
from partitioner import CoreMLPartitioner, host
from partitioner import lower as lower_whole
from partitioner.graph.ranks import is_high
from partitioner.rewrites.functional import functional
from partitioner.rewrites.leading_dimensions import merge_leading_dimensions

WEIGHT = torch.linspace(-1, 1, 3)
SQUARE = torch.linspace(-1, 1, 9).reshape(3, 3)
STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer_norm": lambda x: F.layer_norm(x, (3,), WEIGHT, WEIGHT + 1),
    "linear": lambda x: F.linear(x, SQUARE, WEIGHT),
    "softmax": lambda x: x.softmax(-1),
    "gelu": F.gelu,
    "relu": F.relu,
    "residual": lambda x: x + x.sigmoid(),
    "product with channels": lambda x: x * WEIGHT,
    "sum with a number": lambda x: x + 2,
    "permutation": lambda x: x.permute(0, 2, 1, 4, 3, 5),
}
MOVES = ("aten.view.default", "aten.permute.default", "aten.clone.default")


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 3), min_size=5, max_size=5),
    steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6),
)
@example([1, 1, 1, 2, 2], ["permutation", "gelu", "permutation"])  # reshaped without a copy, while strides are kept
def test_any_chain_of_local_operations(sizes: list[int], steps: list[str]) -> None:
    def function(x: Tensor) -> Tensor:
        y = x.reshape(*sizes, 3)
        for step in steps:
            y = STEPS[step](y)
        return y.reshape(-1, 3)

    x = torch.randn(torch.Size(sizes).numel(), 3, generator=torch.Generator().manual_seed(0))
    program = functional(torch.export.export(Function(function), (x,)))
    merge_leading_dimensions(program)
    assert {str(node.target) for node in program.graph.nodes if is_high(node)} <= set(MOVES)
    torch.testing.assert_close(program.module()(x), function(x), rtol=2.0**-20, atol=2.0**-20)


def test_a_dynamic_value_behind_a_permuted_one() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        high = F.gelu(x.reshape(1, 1, 1, 2, 2, 3).permute(0, 2, 1, 4, 3, 5)).permute(0, 2, 1, 4, 3, 5)
        return (high.reshape(1, 2, 2, 3) + y[:, None, None]).reshape(y.shape[0] * 4, 3)

    x, y = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    shapes = (None, {0: torch.export.Dim("n", min=2, max=8)})
    program = functional(torch.export.export(Function(function), (x, y), dynamic_shapes=(shapes,)))
    merge_leading_dimensions(program)
    torch.testing.assert_close(program.module()(x, y), function(x, y), rtol=2.0**-20, atol=2.0**-20)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.softmax(2),
        lambda x: F.layer_norm(x, (3, 3)),
        lambda x: x + torch.linspace(-1, 1, 6).reshape(2, 1, 1, 3),
        lambda x: x.cumsum(1),
    ],
)
def test_what_looks_at_other_dimensions_is_left_alone(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(1, 2, 2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    program = functional(
        torch.export.export(Function(lambda x: function(x.reshape(1, 2, 2, 2, 3, 3))), (x.reshape(8, 9),))
    )
    before = [str(node.target) for node in program.graph.nodes]
    merge_leading_dimensions(program)
    assert [str(node.target) for node in program.graph.nodes] == before
    assert torch.equal(program.module()(x.reshape(8, 9)), function(x))


class Windows(nn.Module):
    """A block of a network that keeps windows of an image apart throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 1)
        self.norm, self.wide, self.narrow = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image).reshape(2, 16, 2, 4, 3, 4).permute(0, 2, 4, 3, 5, 1)
        x = x + self.narrow(F.gelu(self.wide(self.norm(x))))
        return x.permute(0, 5, 1, 3, 2, 4).reshape(2, 16, 8, 12)


@pytest.mark.parametrize("quantized", [False, True])
def test_a_block_on_windows_is_one_partition(quantized: bool) -> None:
    torch.manual_seed(0)
    model, image = Windows().eval(), torch.randn(2, 3, 8, 12)
    program = torch.export.export(model, (image,))
    if quantized:
        prepared = prepare_pt2e(program.module(), CoreMLQuantizer())
        prepared(image)
        model = convert_pt2e(prepared)
        program = torch.export.export(model, (image,))
    whole = lower_whole(program)
    assert whole.direct
    assert whole.report[0].partitions == 1
    partitioner = CoreMLPartitioner()
    manager = lower(model, (image,), partitioner=partitioner)
    assert len(delegates(manager)) == 1
    assert partitioner.rejections == ()
    for buffer in (whole.buffer, manager.to_executorch().buffer):
        (result,) = host.run(buffer, image, policy="float32")
        # The result is stored in float16.
        assert signal_to_noise(model(image).detach(), result) > 60
