"""Clamps to limits of any kind, and ``hardtanh``, which is a clamp too.

Core ML Tools sets a missing limit to the largest number of float32, which float16 cannot hold. In a half-precision
program this clamp then stays in float32, and so off the Neural Engine, and infinity becomes a finite number. Where the
lower limit exceeds the upper one, PyTorch gives the upper one; Core ML Tools does so for constant scalars only, and
fails on constant tensors. The converter of hardtanh takes the limits as they are, even integers, and requires limits
that exported programs leave out.
"""

from typing import Any

import numpy as np
from coremltools.converters.mil.frontend.torch.ops import _get_inputs, promote_input_dtypes
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil import types

from partitioner.lowerings.registry import set_converter

_HARDTANH = (-1.0, 1.0)


def _limits(bound: Any, unlimited: float) -> bool:
    """Returns whether a bound limits any value."""
    return bound is not None and not (bound.val is not None and np.all(bound.val == unlimited))


@set_converter("clamp", "clip")
def _clamp(context: Any, node: Any) -> None:
    x, low, high = [*_get_inputs(context, node, expected=[1, 2, 3]), None, None][:3]
    low = low if _limits(low, -np.inf) else None
    high = high if _limits(high, np.inf) else None
    given = iter(promote_input_dtypes([value for value in (x, low, high) if value is not None]))
    x, low, high = (None if value is None else next(given) for value in (x, low, high))
    if _is_clip(x, low, high):
        context.add(mb.clip(x=x, alpha=low, beta=high, name=node.name))
    elif low is None and high is None:
        context.add(mb.identity(x=x, name=node.name))
    elif high is None:
        context.add(_at_least(x, low, node.name))
    else:
        x = x if low is None else _at_least(x, low, f"{node.name}_at_least")
        context.add(mb.minimum(x=x, y=high, name=node.name))


@set_converter("clamp_min")
def _clamp_min(context: Any, node: Any) -> None:
    x, low = promote_input_dtypes(_get_inputs(context, node, expected=2))
    context.add(_at_least(x, low, node.name))


@set_converter("clamp_max")
def _clamp_max(context: Any, node: Any) -> None:
    x, high = promote_input_dtypes(_get_inputs(context, node, expected=2))
    context.add(mb.minimum(x=x, y=high, name=node.name))


@set_converter("hardtanh")
def _hardtanh(context: Any, node: Any) -> None:
    node.inputs = [*node.inputs, *_HARDTANH[len(node.inputs) - 1 :]]
    _clamp(context, node)


def _is_clip(x: Any, low: Any, high: Any) -> bool:
    """Returns whether a clamp is Core ML's: of floating-point numbers to two constant scalars in their order."""
    numbers: list[Any] = [None if bound is None else bound.val for bound in (low, high)]
    scalars = all(number is not None and np.ndim(number) == 0 for number in numbers)
    return scalars and bool(types.is_float(x.dtype)) and bool(numbers[0] < numbers[1])


def _at_least(x: Any, low: Any, name: str) -> Any:
    if types.is_float(x.dtype) and low.val is not None and np.ndim(low.val) == 0 and low.val == 0:
        return mb.relu(x=x, name=name)  # fused with a convolution in front of it
    return mb.maximum(x=x, y=low, name=name)
