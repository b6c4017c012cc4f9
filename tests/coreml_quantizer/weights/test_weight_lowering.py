"""Compressed weights reach the program in their compressed form, and the program computes what the graph does."""

import re
from pathlib import Path

import coremltools as ct
import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from executorch.exir.backend.compile_spec_schema import CompileSpec
from helpers.graphs import prepare
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from coreml_quantizer import LayerConfig, QuantizerConfig, WeightConfig
from coreml_quantizer.presets import PRESETS
from partitioner import CoreMLBackend, CoreMLPartitioner, host, lower
from partitioner.errors import DeploymentTargetError

FORMS = {
    **{name: WeightConfig(name) for name in ("int8", "uint8", "int4", "uint4", "lut1", "lut2", "lut3", "lut6", "lut8")},
    **{f"{name} blocks": WeightConfig(name, block_size=16) for name in ("int8", "uint8", "int4", "uint4")},
    **{f"{name} affine": WeightConfig(name, "affine", block_size=16) for name in ("int8", "uint8", "int4", "uint4")},
    "int4 groups": WeightConfig("int4", group_size=8),
    "lut4": WeightConfig("lut4"),
    "lut4 groups": WeightConfig("lut4", group_size=8),
}
BITS = {name: int("".join(c for c in weight.dtype if c.isdigit())) for name, weight in FORMS.items()}
LAYERS = {
    "linear": lambda: (nn.Linear(256, 64), (4, 256)),
    "conv": lambda: (nn.Conv2d(32, 64, 3), (1, 32, 6, 6)),
    "transposed conv": lambda: (nn.ConvTranspose2d(32, 64, 3), (1, 32, 4, 4)),
}
QUICK = {("int4 blocks", "conv"), ("int4 affine", "linear"), ("lut4 groups", "transposed conv"), ("lut6", "linear")}


def cases() -> list[object]:
    return [
        pytest.param(form, layer, id=f"{form}-{layer}", marks=() if (form, layer) in QUICK else pytest.mark.slow)
        for form in FORMS
        for layer in LAYERS
    ]


@pytest.mark.parametrize(("form", "layer"), cases())
def test_weights_stay_compressed_and_agree(form: str, layer: str) -> None:
    torch.manual_seed(0)
    module, shape = LAYERS[layer]()
    inputs = (torch.randn(shape),)
    config = QuantizerConfig(LayerConfig(FORMS[form], None))
    with torch.no_grad():
        converted = convert_pt2e(prepare(module, inputs, config))
        expected = converted(*inputs)
    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS18)
    exported = torch.export.export(converted, inputs)
    lowered = to_edge_transform_and_lower(exported, partitioner=[CoreMLPartitioner(compile_specs=specs)])
    program = lowered.to_executorch().buffer
    (found,) = host.run(program, *inputs)
    # Every product is taken of float16 inputs and stored in float16; sums of signs that vary keep it near that.
    assert float((found - expected).abs().max()) <= 2**-9 * float(expected.abs().max())
    # Indices or integers, float16 scales or tables, and what a program of one layer takes besides.
    scales = module.weight.numel() // 16 * 4 if "blocks" in form or "affine" in form else 2 * 64 * 2**8
    assert len(program) <= module.weight.numel() * BITS[form] / 8 + scales + 6000


PAGE = Path(__file__).parents[3] / "docs" / "presets.md"
DOCUMENTED = dict(re.findall(r"^\| `(\w+)`.*?\| (iOS\d+), macOS", PAGE.read_text(), re.MULTILINE))
TARGETS = ("iOS15", "iOS16", "iOS17", "iOS18")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_lower_at_their_documented_target_and_at_none_before(name: str) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(4, 64),)
    prepared = prepare(nn.Linear(64, 32), inputs, name)
    with torch.no_grad():
        prepared(*inputs)
        converted = convert_pt2e(prepared)
        expected = converted(*inputs)
    oldest = DOCUMENTED[name]
    exported = torch.export.export(converted, inputs)
    (found,) = host.load(lower(exported, compile_specs=specs_of(oldest)).buffer).run(inputs)
    # A value near the middle of two steps of an output in eight bits may go either way.
    error = 2**-9 + (2 / 255 if name.startswith("w8a8") else 0)
    assert float((found - expected).abs().max()) <= error * float(expected.abs().max())
    with pytest.raises(DeploymentTargetError, match=oldest):
        lower(exported, compile_specs=specs_of(TARGETS[TARGETS.index(oldest) - 1]))


@pytest.mark.parametrize(("table", "oldest"), [("lut1", "iOS16"), ("lut3", "iOS18"), ("lut6", "iOS16")])
def test_tables_of_sizes_that_are_new_need_a_newer_target(table: str, oldest: str) -> None:
    inputs = (torch.randn(4, 64),)
    config = QuantizerConfig(LayerConfig(WeightConfig(table), None))
    exported = torch.export.export(convert_pt2e(prepare(nn.Linear(64, 32), inputs, config)), inputs)
    assert lower(exported, compile_specs=specs_of(oldest)).buffer
    with pytest.raises(DeploymentTargetError, match=oldest):
        lower(exported, compile_specs=specs_of(TARGETS[TARGETS.index(oldest) - 1]))


def specs_of(target: str) -> list[CompileSpec]:
    return CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target[target])
