"""Parameters that a branch shares with layers in Core ML."""

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn

from partitioner import CoreMLPartitioner, host, lower

X = torch.linspace(-1, 1, 8).reshape(2, 4)


class Shared(nn.Module):
    """A layer that runs in front of a condition, and once more in a branch."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.register_buffer("offset", torch.linspace(0, 1, 4), persistent=kind != "temporary buffer")
        self.kind = kind

    def branch(self, x: Tensor) -> Tensor:
        return self.layer(x) if self.kind == "parameters" else x * self.offset

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return torch.cond(x.sum() > 0, self.branch, lambda y: y - 1, (y,)) * 2


@pytest.mark.parametrize("kind", ["parameters", "buffer", "temporary buffer"])
def test_a_branch_shares_a_constant(kind: str) -> None:
    model = Shared(kind).eval()
    program = torch.export.export(model, (X,))
    names = set(program.state_dict)
    edge = to_edge_transform_and_lower(program, partitioner=[CoreMLPartitioner()]).to_executorch()
    for buffer in (lower(program).buffer, edge.buffer):
        for x in (X + 1, X - 1):
            torch.testing.assert_close(host.run(buffer, x)[0], model(x).detach(), rtol=2e-3, atol=2e-3)
    assert set(program.state_dict) == names
