"""Attention whose query heads share key and value heads (``enable_gqa``), or that names the usual scale.

Core ML needs one key head and one value head for each query head. The converter of Core ML Tools ignores ``enable_gqa``
and fails on the unequal numbers of heads. Here the key and value heads are repeated.

Core ML's attention operation (from iOS18 on) has the usual scale only: one over the square root of the number of
channels. Core ML Tools decomposes every call that names a scale, even the usual one, and the models of transformers do
name it. Here the usual scale is left out.
"""

import math
from typing import Any

import numpy as np
from coremltools.converters.mil.frontend.torch.ops import _get_kwinputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil.types.symbolic import is_symbolic

from partitioner.lowerings.arguments import remove_keywords
from partitioner.lowerings.registry import get_converter, set_converter

_HEADS = -3
_stock = get_converter("scaled_dot_product_attention")


@set_converter("scaled_dot_product_attention")
def _attention(context: Any, node: Any) -> None:
    query, *shared = (context[node.inputs[position]] for position in range(3))
    (scale,) = _get_kwinputs(context, node, "scale", default=[None])
    is_usual = scale is not None and _is_usual(scale.val, query.shape[-1])
    remove_keywords(node, "enable_gqa", *(["scale"] if is_usual else []))
    names = [node.inputs[0]]
    for value, name in zip(shared, node.inputs[1:3], strict=True):
        times = query.shape[_HEADS] // value.shape[_HEADS] if query.rank > 3 else 1
        names.append(name if times == 1 else _repeated(context, value, times, f"{node.name}_{name}_of_all_heads"))
    node.inputs = [*names, *node.inputs[3:]]
    _stock(context, node)


def _is_usual(scale: Any, channels: Any) -> bool:
    """Returns whether a scale equals the usual one in float16. The decomposition would not keep more precision."""
    if scale is None or is_symbolic(channels):
        return False
    return bool(np.float16(scale) == np.float16(1 / math.sqrt(channels)))


def _repeated(context: Any, value: Any, times: int, name: str) -> str:
    """Repeats every head next to itself and returns the name of the result."""
    axis = value.rank + _HEADS
    wide = mb.expand_dims(x=value, axes=[axis + 1])
    tiled = mb.tile(x=wide, reps=[times if index == axis + 1 else 1 for index in range(wide.rank)])
    shape = [size if isinstance(size, (int, np.integer)) else -1 for size in value.shape]
    shape[axis] *= times
    context.add(mb.reshape(x=tiled, shape=shape, name=name), name)
    return name
