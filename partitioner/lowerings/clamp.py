"""Clamps with a limit on one side only, and ``hardtanh``, which is a clamp too.

Core ML Tools sets the missing limit to the largest number of float32, which float16 cannot hold. In a half-precision
program this clamp then stays in float32, and so off the Neural Engine, and infinity becomes a finite number. The
converter of hardtanh takes the limits as they are, even integers, and requires limits that exported programs leave out.
"""

from typing import Any

import numpy as np
from coremltools.converters.mil.frontend.torch.ops import _get_inputs, promote_input_dtypes
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil import types

from partitioner.lowerings.registry import get_converter, set_converter

_stock = get_converter("clamp")

_HARDTANH = (-1.0, 1.0)


def _limits(bound: Any, unlimited: float) -> bool:
    """Returns whether a bound limits any value."""
    return bound is not None and not (bound.val is not None and np.all(bound.val == unlimited))


@set_converter("clamp", "clip")
def _clamp(context: Any, node: Any) -> None:
    x, low, high = [*_get_inputs(context, node, expected=[1, 2, 3]), None, None][:3]
    if _limits(low, -np.inf) and _limits(high, np.inf):
        _stock(context, node)
    elif _limits(low, -np.inf):
        _at_least(context, node, x, low)
    elif _limits(high, np.inf):
        x, high = promote_input_dtypes([x, high])
        context.add(mb.minimum(x=x, y=high, name=node.name))
    else:
        context.add(mb.identity(x=x, name=node.name))


@set_converter("clamp_min")
def _clamp_min(context: Any, node: Any) -> None:
    _at_least(context, node, *_get_inputs(context, node, expected=2))


@set_converter("clamp_max")
def _clamp_max(context: Any, node: Any) -> None:
    x, high = promote_input_dtypes(_get_inputs(context, node, expected=2))
    context.add(mb.minimum(x=x, y=high, name=node.name))


@set_converter("hardtanh")
def _hardtanh(context: Any, node: Any) -> None:
    node.inputs = [*node.inputs, *_HARDTANH[len(node.inputs) - 1 :]]
    _clamp(context, node)


def _at_least(context: Any, node: Any, x: Any, low: Any) -> None:
    x, low = promote_input_dtypes([x, low])
    if types.is_float(x.dtype) and low.val is not None and np.ndim(low.val) == 0 and low.val == 0:
        context.add(mb.relu(x=x, name=node.name))  # fused with a convolution in front of it
    else:
        context.add(mb.maximum(x=x, y=low, name=node.name))
