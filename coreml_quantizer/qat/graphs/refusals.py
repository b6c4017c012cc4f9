"""A check that refuses models that cannot train."""

from collections.abc import Iterable

import torch
from torch.fx import Node

from coreml_quantizer.errors import QuantizerError
from coreml_quantizer.placement.sharing import Place

_SHORT = (torch.float16, torch.bfloat16)
_MOST_LISTED = 5


def refuse_half_precision(places: Iterable[Place]) -> None:
    """Refuses models that compute a value to be quantized in float16 or bfloat16.

    Raises:
        QuantizerError: There are some; the message lists the values.
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
