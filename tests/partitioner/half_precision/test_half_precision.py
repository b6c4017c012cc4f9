"""What float16 cannot hold is found before the cast, handled, and reported."""

import coremltools as ct
import pytest
import torch
from helpers.lowering import Function, operations
from helpers.lowering import lower as lower_to_edge
from helpers.minimal_quantizer import quantized
from helpers.models import signal_to_noise
from torch import Tensor, nn

from partitioner import CoreMLBackend, CoreMLPartitioner, host, lower

LOWEST = torch.finfo(torch.float32).min
X = torch.linspace(-1, 1, 16).reshape(2, 8)
KEEP = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0], [0] * 8])


def run(model: nn.Module, *inputs: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    lowered = lower(torch.export.export(model, inputs))
    (result,) = host.run(lowered.buffer, *inputs, policy="storage16")
    return result, lowered.report[0].notes


def multiplied(x: Tensor, keep: Tensor) -> Tensor:
    return torch.softmax(x + (1.0 - keep.float()) * LOWEST, -1)


def selected(x: Tensor, keep: Tensor) -> Tensor:
    return torch.softmax(torch.where(keep > 0, x, LOWEST), -1)


def filled(x: Tensor, keep: Tensor) -> Tensor:
    return torch.softmax(x.masked_fill(keep == 0, -1e9) + x.masked_fill(keep == 0, -1e9), -1)


@pytest.mark.parametrize("function", [multiplied, selected, filled])
def test_masks_are_clamped_and_fully_masked_rows_stay_numbers(function) -> None:
    model = Function(function)
    result, notes = run(model, X, KEEP)
    assert any("clamped to -30000" in note and 'File "' in note for note in notes)
    # One step of float16 below 1.
    torch.testing.assert_close(result, model(X, KEEP), rtol=0, atol=2**-11)


def test_infinite_masks_stay_as_they_are() -> None:
    model = Function(lambda x, keep: torch.softmax(x.masked_fill(keep == 0, -torch.inf), -1))
    keep = KEEP[:1].expand(2, 8).contiguous()
    result, notes = run(model, X, keep)
    assert notes == ()
    torch.testing.assert_close(result, model(X, keep), rtol=0, atol=2**-11)


def test_an_eps_below_float16_is_raised() -> None:
    model = Function(lambda x: nn.functional.layer_norm(x * 0, (8,), eps=1e-12) + x)
    result, notes = run(model, X)
    (note,) = notes
    assert note.startswith("1e-12 raised to 5.96e-08, the smallest of float16: layer_norm ")
    torch.testing.assert_close(result, X, rtol=2**-11, atol=0)


LOGARITHMS = {
    "sum": lambda x: torch.log10(x.relu() + 1e-10),
    "clamp": lambda x: torch.log(x.relu().clamp(min=1e-10)),
    "clip": lambda x: torch.log2(torch.clamp(x.relu(), 1e-10, 5.0)),
    "maximum": lambda x: torch.maximum(x.relu(), torch.tensor(1e-10)).log(),
}


@pytest.mark.parametrize("function", LOGARITHMS.values(), ids=LOGARITHMS.keys())
def test_an_eps_below_float16_in_front_of_a_logarithm_stays(function) -> None:
    """Raised to the smallest of float16, zero would have the logarithm of 6e-8 instead of 1e-10."""
    result, notes = run(Function(function), X)
    (note,) = notes
    assert note.startswith("kept in float32 with its logarithm, for 1e-10: ")
    # Half a step of float16 at the largest of the logarithms, 33, and what rounding the input to float16 makes of it.
    torch.testing.assert_close(result, function(X), rtol=0, atol=2**-6)


def test_large_values_are_computed_in_float32_until_they_are_small_again() -> None:
    model = Function(lambda x: ((x * 1e5 + 1).relu() / 1e5).tanh())
    result, notes = run(model, X)
    assert any("kept in float32 with what reads it, for values up to 1e+05: mul 'mul'" in note for note in notes)
    assert signal_to_noise(model(X), result) > 60


def test_a_calibrated_range_beyond_float16_is_known() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    with torch.no_grad():
        first.weight.mul_(4e5)
    model = quantized(nn.Sequential(first, nn.ReLU(), second).eval(), (X,))
    result, notes = run(model, X)
    assert any("kept in float32" in note for note in notes)
    assert torch.isfinite(result).all()
    assert signal_to_noise(model(X).detach(), result) >= 30


def test_ordinary_programs_have_no_notes() -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(8, 8), nn.GELU(approximate="tanh"), nn.LayerNorm(8), nn.Linear(8, 8), nn.Softmax(-1))
    result, notes = run(nn.Sequential(*layers).eval(), X)
    assert notes == ()
    assert torch.isfinite(result).all()


def test_single_precision_needs_nothing() -> None:
    specs = CoreMLBackend.generate_compile_specs(compute_precision=ct.precision.FLOAT32)
    lowered = lower(torch.export.export(Function(multiplied), (X, KEEP)), compile_specs=specs)
    assert lowered.report[0].notes == ()


def test_passes_chosen_by_the_user_are_guarded_too() -> None:
    names = ["common::const_elimination", "common::dead_code_elimination", "common::add_fp16_cast"]
    partitioner = CoreMLPartitioner(compile_specs=CoreMLBackend.generate_compile_specs(pass_names=names))
    manager = lower_to_edge(Function(selected), (X, KEEP), partitioner=partitioner)
    assert "clamped" in partitioner.report()[0].notes[0]
    assert "softmax" in [operation.type for operation in operations(manager)]


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_bert_with_all_of_them_survives(attention: str) -> None:
    from transformers import BertConfig, BertModel

    class Amplified(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * 1e5 + 1

    class Reduced(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor, residual: Tensor) -> Tensor:
            return self.inner(x / 1e5, residual)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = BertConfig(
                vocab_size=100,
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=128,
                layer_norm_eps=1e-12,
                attn_implementation=attention,
            )
            self.bert = BertModel(config)
            layer = self.bert.encoder.layer[0]
            layer.intermediate = Amplified(layer.intermediate)
            layer.output = Reduced(layer.output)

        def forward(self, ids: Tensor, keep: Tensor) -> Tensor:
            x = self.bert.embeddings(ids)
            mask = (1.0 - keep[:, None, None, :].float()) * LOWEST
            for layer in self.bert.encoder.layer:
                x = layer(x, mask)
                x = x[0] if isinstance(x, tuple) else x
            return x

    torch.manual_seed(0)
    model = Encoder().eval()
    ids = torch.randint(0, 100, (2, 8))
    result, notes = run(model, ids, KEEP)
    assert [any(part in note for note in notes) for part in ("clamped", "raised", "kept in float32")] == [True] * 3
    assert torch.isfinite(result).all()
    assert signal_to_noise(model(ids, KEEP).detach(), result) >= 30.0
