"""A user script for ExecuTorch's Core ML backend of which only the import lines are changed to ours.

Run as a script with "static" or "weight-only", the path to write the program to, and a path for the sample with what
the quantized model makes of it.
"""

import sys
from pathlib import Path

import coremltools as ct
import torch
from executorch.exir import to_edge_transform_and_lower
from helpers.models import settle
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

from coreml_quantizer import CoreMLQuantizer
from partitioner import CoreMLBackend, CoreMLPartitioner

activation_dtype = {"static": torch.quint8, "weight-only": torch.float32}[sys.argv[1]]
torch.manual_seed(0)
model = MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.35, image_size=96, num_labels=10))
example = (torch.randn(1, 3, 96, 96),)
settle(model, example)

config = ct.optimize.torch.quantization.LinearQuantizerConfig(
    global_config=ct.optimize.torch.quantization.ModuleLinearQuantizerConfig(
        quantization_scheme="symmetric",
        activation_dtype=activation_dtype,
        weight_dtype=torch.qint8,
        weight_per_channel=True,
    )
)
quantizer = CoreMLQuantizer(config)
exported = torch.export.export(model, example).module()
prepared = prepare_pt2e(exported, quantizer)
for sample in [torch.randn(1, 3, 96, 96)]:
    prepared(sample)
quantized = convert_pt2e(prepared)

program = to_edge_transform_and_lower(
    torch.export.export(quantized, example),
    partitioner=[
        CoreMLPartitioner(compile_specs=CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS17))
    ],
).to_executorch()
Path(sys.argv[2]).write_bytes(program.buffer)
torch.save((*example, quantized(*example).logits.detach()), sys.argv[3])
