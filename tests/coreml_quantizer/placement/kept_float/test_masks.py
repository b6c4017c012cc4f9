"""Where quantize and dequantize stand in attention, and that masks never carry any."""

import pytest
import torch
from helpers.graphs import QDQ, ROWS, call, calls, input_qparams, is_dequantized, output_qparams, quantize
from helpers.models import signal_to_noise
from torch import Tensor, nn

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Attention(nn.Module):
    """Scores, a mask of each usual kind, and softmax."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.query = nn.Linear(6, 6)
        self.register_buffer("bias", torch.full((4, 4), torch.finfo(torch.float32).min).triu(1))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        scores = torch.matmul(self.query(x), x.transpose(0, 1))
        if self.kind == "additive":
            scores = scores + (1.0 - keep.float()) * -1e4
        elif self.kind == "buffer":
            scores = scores + self.bias
        elif self.kind == "fill":
            scores = scores.masked_fill(keep == 0, -torch.inf)
        elif self.kind == "where":
            scores = torch.where(keep > 0, scores, torch.full((), torch.finfo(torch.float32).min))
        elif self.kind == "float":
            scores = scores + keep.float().log()
        return torch.matmul(torch.softmax(scores, -1), x)


@pytest.mark.parametrize("kind", ["additive", "buffer", "fill", "where", "float"])
def test_masks_never_set_a_range(kind: str) -> None:
    model = Attention(kind)
    inputs = (*ROWS, torch.ones(4, 4).tril())
    expected = model(*inputs)
    graph = quantize(model, inputs)
    for node in calls(graph, QDQ.quantize_per_tensor):
        assert node.args[1] < 1, f"{node.args[0]} was quantized with a scale of {node.args[1]}"
    assert signal_to_noise(expected, graph(*inputs)) > 30
    # Softmax lies in [0, 1]: the product behind it reads it with the fixed step of 1/256.
    assert input_qparams(calls(graph, aten.matmul)[1]) == (1 / 256, 0)


def test_attention_reads_and_writes_quantized_values_and_leaves_its_mask() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(6, 18)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            q, k, v = self.qkv(x).reshape(1, 4, 3, 6).transpose(1, 2).unsqueeze(1).unbind(2)
            return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    graph = quantize(Attend(), (*ROWS, torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1) > 0, -torch.inf)))
    attention = call(graph, aten.scaled_dot_product_attention)
    assert [is_dequantized(operand) for operand in attention.args[:4]] == [True, True, True, False]
    output_qparams(attention)
