"""What training cannot start from."""

from collections.abc import Iterable

import torch
from torch.fx import Node

from coreml_quantizer.errors import QuantizerError
from coreml_quantizer.placement.sharing import Place

_SHORT = (torch.float16, torch.bfloat16)
_MOST_LISTED = 5


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
