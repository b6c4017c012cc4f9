"""What training cannot start from, and what must not be done with a model that trains."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.ao.quantization import FakeQuantizeBase as OldFakeQuantizeBase
from torch.ao.quantization import ObserverBase as OldObserverBase
from torch.fx import Node
from torchao.quantization.pt2e import FakeQuantizeBase, ObserverBase

from coreml_quantizer.errors import QuantizerError
from coreml_quantizer.sharing import Place

_INSERTED = (ObserverBase, FakeQuantizeBase, OldObserverBase, OldFakeQuantizeBase)
_SHORT = (torch.float16, torch.bfloat16)
_MOST_LISTED = 5


def refuse_prepared(model: nn.Module) -> None:
    """Checks that `model` has no observers or fake quantizers.

    Raises:
        QuantizerError: It has; names the first.
    """
    for name, module in model.named_modules():
        if isinstance(module, _INSERTED):
            raise QuantizerError(
                f"The model is prepared already: '{name}' is a {type(module).__name__}. Give the model that it was "
                "prepared from, or convert it first (convert_pt2e, or finalize() of the LinearQuantizer)."
            )


def refuse_half_precision(places: Iterable[Place]) -> None:
    """Checks that what is going to be quantized is computed in float32 or wider.

    Raises:
        QuantizerError: Something is not; lists what.
    """
    sources = (place if isinstance(place, Node) else place[0] for place in places)
    short = {f"'{source.name}' is {source.meta['val'].dtype}" for source in sources if _is_short(source)}
    if short:
        listed = sorted(short)[:_MOST_LISTED]
        more = f", and {len(short) - _MOST_LISTED} more" if len(short) > _MOST_LISTED else ""
        raise QuantizerError(
            f"The model cannot train in half precision: {', '.join(listed)}{more}. Train in float32: call "
            "model.float() and give float32 inputs. To compute in half precision, run the prepared model under "
            "torch.autocast."
        )


def _is_short(source: Node) -> bool:
    value = source.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype in _SHORT


def refuse_export() -> None:
    """Called in the forward pass of fake quantizers: what is exported with them would quantize nothing.

    Raises:
        QuantizerError: torch.export is tracing.
    """
    if torch.compiler.is_exporting():
        raise QuantizerError(
            "torch.export.export was called on a model that still trains: it has fake quantizers, which are not "
            "quantized operators. Convert it first: convert_pt2e(model), or finalize() of the LinearQuantizer, and "
            "export the result."
        )
