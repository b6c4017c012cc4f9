"""Attention in which several queries share a key and a value (``enable_gqa``), or whose scale is the usual one.

Core ML has one key and one value for each query; the converter of Core ML Tools ignores the argument and fails on the
unequal numbers of heads.

Core ML's own operation (from iOS18 on) has the usual scale only, one over the root of the number of channels. Core ML
Tools takes apart whatever names a scale, as the models of transformers do, that one too.
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
    """Whether a scale is the usual one as float16 holds it, which is all that the decomposition would make of it."""
    if scale is None or is_symbolic(channels):
        return False
    return bool(np.float16(scale) == np.float16(1 / math.sqrt(channels)))


def _repeated(context: Any, value: Any, times: int, name: str) -> str:
    """Repeats every head, next to itself."""
    axis = value.rank + _HEADS
    wide = mb.expand_dims(x=value, axes=[axis + 1])
    tiled = mb.tile(x=wide, reps=[times if index == axis + 1 else 1 for index in range(wide.rank)])
    shape = [size if isinstance(size, (int, np.integer)) else -1 for size in value.shape]
    shape[axis] *= times
    context.add(mb.reshape(x=tiled, shape=shape, name=name), name)
    return name
