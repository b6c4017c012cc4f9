"""Group norm of volumes and of inputs whose batch size varies. The converter of Core ML Tools fails on both.

Core ML Tools puts the channels of a group on a separate dimension, which makes six dimensions for a volume. It also
writes the batch size into the program as a fixed number. Here all elements of a group are one dimension.
"""

import math
from typing import Any

import numpy as np
from coremltools.converters.mil.frontend.torch.ops import _get_inputs, _get_kwinputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil.types.symbolic import is_symbolic

from partitioner.limits import HIGHEST_RANK
from partitioner.lowerings.registry import get_converter, set_converter

_EPS = 1e-5
_stock = get_converter("group_norm")


@set_converter("group_norm")
def _group_norm(context: Any, node: Any) -> None:
    x, groups, *others = _get_inputs(context, node)
    if x.rank < HIGHEST_RANK and not is_symbolic(x.shape[0]):
        _stock(context, node)
        return
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
    flat = mb.reshape(x=x, shape=flat_shape)
    centred = mb.sub(x=flat, y=mb.reduce_mean(x=flat, axes=[2], keep_dims=True))
    variance = mb.reduce_mean(x=mb.square(x=centred), axes=[2], keep_dims=True)
    scaled = mb.real_div(x=centred, y=mb.sqrt(x=mb.add(x=variance, y=np.float32(eps))))
    return mb.reshape(x=scaled, shape=shape)


def _shapes(x: Any, groups: int) -> tuple[Any, Any]:
    """Returns the shape (batch, groups, everything else) and the shape of `x`. A single varying size is inferred."""
    if sum(map(is_symbolic, x.shape)) > 1:
        shape = mb.shape(x=x)
        first = mb.slice_by_size(x=shape, begin=[0], size=[1])
        return mb.concat(values=[first, np.array([groups, -1], np.int32)], axis=0), shape
    shape = [-1 if is_symbolic(size) else size for size in x.shape]
    others = -1 if any(map(is_symbolic, x.shape[1:])) else math.prod(x.shape[1:]) // groups
    return [shape[0], groups, others], shape
