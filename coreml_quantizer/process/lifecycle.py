"""Checks of the order of steps: export, prepare, calibrate or train, convert, export again."""

import torch
from torch import nn
from torch.ao.quantization import FakeQuantizeBase as OldFakeQuantizeBase
from torch.ao.quantization import ObserverBase as OldObserverBase
from torch.fx import GraphModule
from torchao.quantization.pt2e import FakeQuantizeBase, ObserverBase

from coreml_quantizer.errors import QuantizerError

_INSERTED = (ObserverBase, FakeQuantizeBase, OldObserverBase, OldFakeQuantizeBase)
_QUANTIZES = "quantized_decomposed.quantize_per_tensor"


def refuse_prepared(model: nn.Module) -> None:
    """Refuses a model that has observers or fake quantizers already.

    Raises:
        QuantizerError: `model` has some; the message names the first.
    """
    for name, module in model.named_modules():
        if isinstance(module, _INSERTED):
            raise QuantizerError(
                f"The model is prepared already: '{name}' is a {type(module).__name__}. Give the model that it was "
                "prepared from, or convert it first (convert_pt2e, or finalize() of the LinearQuantizer)."
            )


def refuse_quantized(model: GraphModule) -> None:
    """Refuses a graph with quantized activations; its weights may be quantized, for example by torchao's `quantize_`.

    Raises:
        QuantizerError: An activation is quantized; the message names the first.
    """
    for node in model.graph.nodes:
        if str(getattr(node.target, "overloadpacket", "")) == _QUANTIZES:
            raise QuantizerError(
                f"The model is quantized already: '{node.name}' quantizes an activation, and what is quantized twice "
                "is rounded twice. Give the model that it was made from."
            )


def refuse_export() -> None:
    """Refuses torch.export in the forward pass of observers and fake quantizers: with them, it exports no quantization.

    Raises:
        QuantizerError: torch.export is tracing.
    """
    if torch.compiler.is_exporting():
        raise QuantizerError(
            "torch.export.export was called on a model that is prepared for quantization and not converted: it has "
            "observers or fake quantizers, which are no quantized operators. Convert it first: convert_pt2e(model), or "
            "finalize() of the LinearQuantizer, and export the result."
        )
