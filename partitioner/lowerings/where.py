"""Selection between values of different types, or of different shapes.

The converter of Core ML Tools may give a scalar another type than the tensor, and ``select`` refuses different types.
MIL takes the shape of the result from the two values alone, so that a condition with more elements loses them, and
where sizes vary the converter broadcasts nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from coremltools.converters.mil.frontend._utils import pymil_broadcast_tensors
from coremltools.converters.mil.frontend.torch.ops import _get_inputs, promote_input_dtypes
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.types.symbolic import any_symbolic

from partitioner.lowerings.registry import get_converter, set_converter

_stock = get_converter("where.self")


@set_converter("where", "where.self", "where.scalarself", "where.scalarother")  # where.Scalar goes by the first name
def _where(context: Any, node: Any) -> None:
    if len(node.inputs) != 3:  # the places where a condition holds
        _stock(context, node)
        return
    condition, x, y = _get_inputs(context, node, expected=3)
    condition = condition if types.is_bool(condition.dtype) else mb.cast(x=condition, dtype="bool")
    x, y = promote_input_dtypes([x, y])
    shapes = {tuple(value.shape) for value in (condition, x, y)}
    if len(shapes) > 1:
        varying = any(map(any_symbolic, shapes))
        condition, x, y = _alike([condition, x, y]) if varying else pymil_broadcast_tensors([condition, x, y])
    context.add(mb.select(cond=condition, a=x, b=y, name=node.name), node.name)


def _alike(values: Sequence[Any]) -> list[Any]:
    """Broadcasts values, of which some have sizes that vary, to one shape."""
    rank = max(value.rank for value in values)
    full = None
    for value in values:
        if value.rank:
            ones = np.ones(rank - value.rank, np.int32)
            shape = mb.shape(x=value)
            shape = shape if value.rank == rank else mb.concat(values=[ones, shape], axis=0)
            full = shape if full is None else mb.maximum(x=full, y=shape)
    return [_in_shape(value, full) for value in values]


def _in_shape(value: Any, shape: Any) -> Any:
    if types.is_bool(value.dtype):
        return mb.logical_or(x=value, y=mb.fill(shape=shape, value=False))
    return mb.add(x=value, y=mb.fill(shape=shape, value=types.nptype_from_builtin(value.dtype)(0)))
