"""Group norm, as the layer norm of all elements of a group.

Core ML Tools puts the channels of a group on a separate dimension, which makes six dimensions for a volume. It also
writes the batch size into the program as a fixed number, and squares what float16 may not hold the square of.
"""

import math
from typing import Any

import numpy as np
from coremltools.converters.mil.frontend.torch.ops import _get_inputs, _get_kwinputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil.types.symbolic import is_symbolic

from partitioner.lowerings.registry import set_converter

_EPS = 1e-5


@set_converter("group_norm")
def _group_norm(context: Any, node: Any) -> None:
    x, groups, *others = _get_inputs(context, node)
    weight, bias, eps = (*others, None, None, None)[:3]
    weight, bias = (
        _get_kwinputs(context, node, name, [value])[0] for name, value in (("weight", weight), ("bias", bias))
    )
    normalized = _normalized(x, int(groups.val), float(_EPS if eps is None else eps.val))
    per_channel = [1, -1, *[1] * (x.rank - 2)]
    if weight is not None:
        normalized = mb.mul(x=normalized, y=mb.reshape(x=weight, shape=per_channel))
    if bias is not None:
        normalized = mb.add(x=normalized, y=mb.reshape(x=bias, shape=per_channel))
    context.add(mb.identity(x=normalized, name=node.name))


def _normalized(x: Any, groups: int, eps: float) -> Any:
    flat_shape, shape = _shapes(x, groups)
    flat = mb.layer_norm(x=mb.reshape(x=x, shape=flat_shape), axes=[2], epsilon=np.float32(eps))
    return mb.reshape(x=flat, shape=shape)


def _shapes(x: Any, groups: int) -> tuple[Any, Any]:
    """Returns the shape (batch, groups, everything else) and the shape of `x`. A single varying size is inferred."""
    if sum(map(is_symbolic, x.shape)) > 1:
        shape = mb.shape(x=x)
        first = mb.slice_by_size(x=shape, begin=[0], size=[1])
        return mb.concat(values=[first, np.array([groups, -1], np.int32)], axis=0), shape
    shape = [-1 if is_symbolic(size) else size for size in x.shape]
    others = -1 if any(map(is_symbolic, x.shape[1:])) else math.prod(x.shape[1:]) // groups
    return [shape[0], groups, others], shape
