"""A minimal PT2E quantizer for tests: convolutions and linears, static, dynamic or weight-only."""

from typing import Any

import torch
from torch import nn
from torchao.quantization.pt2e import HistogramObserver, PerChannelMinMaxObserver, PlaceholderObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

WEIGHTED = {torch.ops.aten.conv2d.default, torch.ops.aten.linear.default}
ACTIVATION = QuantizationSpec(
    dtype=torch.uint8,
    observer_or_fake_quant_ctr=HistogramObserver.with_args(eps=2**-12),
    quant_min=0,
    quant_max=255,
    qscheme=torch.per_tensor_affine,
)
DYNAMIC = QuantizationSpec(
    dtype=torch.int8,
    observer_or_fake_quant_ctr=PlaceholderObserver.with_args(qscheme=torch.per_tensor_affine),
    quant_min=-128,
    quant_max=127,
    qscheme=torch.per_tensor_affine,
    is_dynamic=True,
)


def weight_spec(low: int, high: int) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=2**-12),
        quant_min=low,
        quant_max=high,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )


class WeightedQuantizer(Quantizer):
    def __init__(self, activation: QuantizationSpec | None, weight: QuantizationSpec) -> None:
        super().__init__()
        self.activation = activation
        self.weight = weight

    def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        for node in model.graph.nodes:
            if node.op == "call_function" and node.target in WEIGHTED:
                inputs = {node.args[1]: self.weight}
                if self.activation is not None:
                    inputs[node.args[0]] = self.activation
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    input_qspec_map=inputs,
                    output_qspec=None if self.activation is DYNAMIC else self.activation,
                    _annotated=True,
                )
        return model

    def validate(self, model: torch.fx.GraphModule) -> None:
        """Every annotation is one this class made."""


def quantized(
    model: nn.Module,
    inputs: tuple[Any, ...],
    *,
    activation: QuantizationSpec | None = ACTIVATION,
    weight_range: tuple[int, int] = (-128, 127),
) -> nn.Module:
    quantizer = WeightedQuantizer(activation, weight_spec(*weight_range))
    prepared = prepare_pt2e(torch.export.export(model, inputs).module(), quantizer)
    prepared(*inputs)
    return convert_pt2e(prepared)


def dynamically_quantized(model: nn.Module, inputs: tuple[Any, ...]) -> nn.Module:
    return quantized(model, inputs, activation=DYNAMIC)
