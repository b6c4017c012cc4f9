"""Tells `prepare_qat_pt2e` from `prepare_pt2e`, which torchao does not tell a quantizer."""

import torch
from torch.fx import GraphModule
from torchao.quantization.pt2e.fake_quantize import FixedQParamsFakeQuantize
from torchao.quantization.pt2e.quantizer import FixedQParamsQuantizationSpec, QuantizationAnnotation
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from coreml_quantizer.errors import QuantizerError
from coreml_quantizer.sharing import Place

_PROBE = FixedQParamsQuantizationSpec(torch.uint8, 1.0, 0, quant_min=0, quant_max=255, qscheme=torch.per_tensor_affine)
"""torchao makes a fake quantize of it for training, and an observer otherwise."""


def plant(model: GraphModule) -> None:
    """Annotates the output node of `model`, on an edge that no graph has: from that node to itself."""
    output = model.graph.output_node()
    output.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation({output: _PROBE}, allow_implicit_sharing=False)


def refuse(model: GraphModule, observers: dict[Place, torch.nn.Module]) -> None:
    """Removes what `plant` added.

    Raises:
        QuantizerError: torchao is preparing for training.
    """
    output = model.graph.output_node()
    del output.meta[Q_ANNOTATION_KEY]
    if isinstance(observers.pop((output, output)), FixedQParamsFakeQuantize):
        raise QuantizerError(
            "CoreMLQuantizer cannot prepare a model for quantization-aware training yet. Use prepare_pt2e for "
            "post-training quantization of the trained model, exported in eval mode."
        )
