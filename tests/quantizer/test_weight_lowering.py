"""Compressed weights reach the program in their compressed form, and the program computes what the graph does."""

import coremltools as ct
import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from coreml_quantizer import LayerConfig, QuantizerConfig, WeightConfig
from partitioner import CoreMLBackend, CoreMLPartitioner, host

from .graphs import prepare

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
