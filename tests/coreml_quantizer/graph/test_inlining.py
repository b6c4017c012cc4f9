"""What runs under `torch.no_grad()` or a switched-off autocast is quantized as everything else."""

import torch
from helpers.graphs import ROWS, calls, is_dequantized, quantize
from torch import Tensor, nn

from coreml_quantizer.placement.decisions import decisions_of


class Contexts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.backbone(x).relu()
            with torch.autocast("cpu", enabled=False):
                z = self.inner(y)
        return self.head(y + z)


def test_graphs_of_contexts_are_inlined_and_quantized() -> None:
    model = Contexts().eval()
    graph = quantize(model, ROWS)
    linears = calls(graph, torch.ops.aten.linear)
    assert len(linears) == 3
    assert all(is_dequantized(node.args[0]) and is_dequantized(node.args[1]) for node in linears)
    assert [decision.module for decision in decisions_of(graph) if decision.weights] == ["backbone", "inner", "head"]
    torch.testing.assert_close(graph(*ROWS), model(*ROWS), rtol=0, atol=0.05)


def test_autocast_that_is_on_is_left_and_reported() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.linear(x)

    found = {decision.op: decision for decision in decisions_of(quantize(Cast(), ROWS))}
    assert found["aten.linear"].outcome == "float"
    assert "wrap_with_autocast" in found["aten.linear"].reason
