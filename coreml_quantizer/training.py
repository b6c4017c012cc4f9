"""Tells `prepare_qat_pt2e` from `prepare_pt2e`, which torchao does not tell a quantizer."""

import torch
from torch.fx import Node
from torchao.quantization.pt2e.fake_quantize import FixedQParamsFakeQuantize
from torchao.quantization.pt2e.quantizer import FixedQParamsQuantizationSpec
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from coreml_quantizer.errors import QuantizerError
from coreml_quantizer.sharing import Place

_PROBE = FixedQParamsQuantizationSpec(torch.uint8, 1.0, 0, quant_min=0, quant_max=255, qscheme=torch.per_tensor_affine)
"""torchao makes a fake quantize of it for training, and an observer otherwise."""


def plant(node: Node) -> None:
    """Adds an annotation to `node`, on an edge that no graph has: from the node to itself."""
    node.meta[Q_ANNOTATION_KEY].input_qspec_map[node] = _PROBE


def refuse(node: Node, observers: dict[Place, torch.nn.Module]) -> None:
    """Removes what `plant` added.

    Raises:
        QuantizerError: torchao is preparing for training.
    """
    del node.meta[Q_ANNOTATION_KEY].input_qspec_map[node]
    if isinstance(observers.pop((node, node)), FixedQParamsFakeQuantize):
        raise QuantizerError(
            "CoreMLQuantizer cannot prepare a model for quantization-aware training yet. Use prepare_pt2e for "
            "post-training quantization of the trained model, exported in eval mode."
        )
