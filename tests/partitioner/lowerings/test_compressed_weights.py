"""Weights compressed by torchao's ``quantize_``: what is stored, and that it computes what the eager model does."""

import coremltools as ct
import pytest
import torch
import torchao.prototype.quantization.codebook_coreml.codebook_ops  # registers the operator  # noqa: F401
from helpers.lowering import WEIGHTS_PATH, blob, delegates, lower, operations
from helpers.models import signal_to_noise
from torch import Tensor, nn
from torch.nn import functional as F
from torchao.prototype.quantization.codebook_coreml import CodebookWeightOnlyConfig
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.quantization.quant_api import IntxWeightOnlyConfig, quantize_

from partitioner import host
from partitioner import lower as lower_whole
from partitioner.errors import DeploymentTargetError
from partitioner.format.blob import read_blob

FLOAT32 = ct.precision.FLOAT32
X = torch.linspace(-1, 1, 256).reshape(4, 64)
BITS = (1, 2, 3, 4, 5, 6, 7, 8)


def linears() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32)).eval()


def weight_bytes(manager: object) -> int:
    return len(read_blob(blob(manager))[WEIGHTS_PATH])


def agrees(model: nn.Module, x: Tensor, **options: object) -> object:
    manager = lower(model, (x,), compute_precision=FLOAT32, **options)
    assert len(delegates(manager)) == 1
    (result,) = host.run(manager.to_executorch().buffer, x)
    torch.testing.assert_close(result, model(x).detach(), rtol=1e-5, atol=1e-5)
    return manager


@pytest.mark.parametrize("bits", BITS)
def test_integers_of_every_size(bits: int) -> None:
    model = linears()
    quantize_(model, IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=PerGroup(32)))
    manager = agrees(model, X)
    elements = 64 * 32 + 32 * 32
    stored = elements // 2 if bits <= 4 else elements
    scales = (32 * 2 + 32) * 4
    biases = 2 * 32 * 4
    # Each constant begins at a multiple of 64 bytes, behind 64 bytes that describe it.
    assert stored + scales + biases <= weight_bytes(manager) <= stored + scales + biases + 6 * 128 + 64


def test_few_values_do_not_make_the_type_smaller() -> None:
    model = nn.Linear(32, 16, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.randint(-3, 4, (16, 32)).float())
        model.weight[:, 0] = 127.0
    quantize_(model, IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0)))
    with torch.no_grad():
        manager = agrees(model, X[:, :32].contiguous(), minimum_deployment_target=ct.target.iOS18)
    assert weight_bytes(manager) >= 16 * 32


def test_eight_bits_per_channel_run_on_ios16() -> None:
    model = linears()
    quantize_(model, IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0)))
    manager = agrees(model, X, minimum_deployment_target=ct.target.iOS16)
    assert [item.type for item in operations(manager)].count("constexpr_affine_dequantize") == 2


def test_four_bits_are_never_widened_for_an_older_target() -> None:
    model = linears()
    quantize_(model, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerAxis(0)))
    with pytest.raises(DeploymentTargetError, match=r"4 bits or fewer need iOS18: torchao\.dequantize_affine"):
        lower(model, (X,), minimum_deployment_target=ct.target.iOS17)


def test_convolutions_in_four_bits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1)).eval()
    quantize_(
        model,
        IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(8)),
        lambda module, _: isinstance(module, nn.Conv2d),
    )
    agrees(model, torch.linspace(-1, 1, 512).reshape(1, 8, 8, 8))


@pytest.mark.parametrize("bits", BITS)
def test_lookup_tables_of_every_size(bits: int) -> None:
    model = linears()
    quantize_(model, CodebookWeightOnlyConfig(dtype=getattr(torch, f"uint{bits}"), block_size=[16, -1]))
    manager = agrees(model, X)
    stored_bits = {5: 6, 7: 8}.get(bits, bits)
    indices = (64 * 32 + 32 * 32) * stored_bits // 8
    tables = (2 + 2) * 2**stored_bits * 4
    biases = 2 * 32 * 4
    assert indices + tables + biases <= weight_bytes(manager) <= indices + tables + biases + 6 * 128 + 64


@pytest.mark.parametrize("block", [[-1, -1], [-1, 16]])
def test_one_table_runs_on_ios16_and_several_on_ios18(block: list[int]) -> None:
    model = linears()
    quantize_(model, CodebookWeightOnlyConfig(dtype=torch.uint5, block_size=block))
    if block == [-1, -1]:  # filled up to 64 values
        agrees(model, X, minimum_deployment_target=ct.target.iOS16)
    else:
        with pytest.raises(DeploymentTargetError, match="several lookup tables need iOS18"):
            lower(model, (X,), minimum_deployment_target=ct.target.iOS17)


class TableConvolution(nn.Module):
    """A convolution whose weight is in lookup tables, one for every block of a grid."""

    def __init__(self, bits: int, tables: tuple[int, ...]) -> None:
        super().__init__()
        shape = (8, 4, 3, 3)
        self.register_buffer("codes", torch.randint(0, 2**bits, shape, dtype=torch.uint8))
        self.register_buffer("tables", torch.randn(*tables, 2**bits, 1))
        self.bits = bits
        self.block = [size // count for size, count in zip(shape, tables, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        codes = self.codes.to(torch.int32)
        weight = torch.ops.quant.dequantize_codebook(codes, self.tables, self.bits, self.block)
        return F.conv2d(x, weight)


@pytest.mark.parametrize(("bits", "tables"), [(4, (2, 1, 1, 1)), (2, (2, 2, 1, 1)), (5, (1, 1, 1, 1))])
def test_convolutions_in_lookup_tables(bits: int, tables: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    agrees(TableConvolution(bits, tables), torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8))


def llama() -> tuple[nn.Module, tuple[Tensor]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        use_cache=False,
        tie_word_embeddings=False,
    )

    class Logits(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: Tensor) -> Tensor:
            return self.model(input_ids=tokens).logits

    return Logits(LlamaForCausalLM(config)).eval(), (torch.randint(0, 1024, (1, 16)),)


def parameters(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, kind))


def check_language_model(model: nn.Module, inputs: tuple[Tensor], expected_bytes: float) -> None:
    manager = lower(model, inputs, minimum_deployment_target=ct.target.iOS18)
    assert len(delegates(manager)) == 1
    (logits,) = host.run(manager.to_executorch().buffer, *inputs)
    with torch.no_grad():
        assert signal_to_noise(model(*inputs), logits) >= 30.0
    assert weight_bytes(manager) == pytest.approx(expected_bytes, rel=0.02)


@pytest.mark.slow
def test_a_language_model_with_int4_groups_and_int8_embeddings() -> None:
    """ExecuTorch's guide to quantizing language models for Core ML, first snippet."""
    model, inputs = llama()
    embeddings, weights = parameters(model, nn.Embedding), parameters(model, nn.Linear)
    norms = 5 * 256 * 2
    embedding_config = IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
    quantize_(model, embedding_config, lambda m, fqn: isinstance(m, nn.Embedding))
    quantize_(model, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)))
    check_language_model(model, inputs, embeddings + 1024 * 2 + weights / 2 + weights / 32 * 2 + norms)


@pytest.mark.slow
def test_a_language_model_with_three_bit_lookup_tables() -> None:
    """ExecuTorch's guide to quantizing language models for Core ML, second snippet."""
    model, inputs = llama()
    elements = parameters(model, nn.Embedding) + parameters(model, nn.Linear)
    modules = [module for module in model.modules() if isinstance(module, nn.Embedding | nn.Linear)]
    tables = sum(module.weight.shape[0] // 16 for module in modules) * 8 * 2
    config = CodebookWeightOnlyConfig(dtype=torch.uint3, block_size=[16, -1])
    quantize_(model, config, lambda m, fqn: isinstance(m, nn.Embedding | nn.Linear))
    check_language_model(model, inputs, elements * 3 / 8 + tables + 5 * 256 * 2)


@pytest.mark.parametrize(
    "compression",
    [
        pytest.param(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)), id="int4"),
        pytest.param(
            IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0)), id="int8", marks=pytest.mark.slow
        ),
        pytest.param(
            CodebookWeightOnlyConfig(dtype=torch.uint4, block_size=[16, -1]), id="table", marks=pytest.mark.slow
        ),
    ],
)
def test_no_detour_over_the_edge_dialect(compression: object) -> None:
    model = linears()
    quantize_(model, compression)
    lowered = lower_whole(torch.export.export(model, (X,)))
    assert lowered.direct
    detour = lower(model, (X,)).to_executorch().buffer
    for policy in ("float32", "storage16"):
        (ours,) = host.run(lowered.buffer, X, policy=policy)
        (theirs,) = host.run(detour, X, policy=policy)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
