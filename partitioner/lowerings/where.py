"""Selection between values of different types, or between scalars.

The converter of Core ML Tools may give a scalar another type than the tensor, and ``select`` refuses different types.
It also cannot broadcast if the condition and both values are scalars.
"""

from typing import Any

from coremltools.converters.mil.frontend._utils import pymil_broadcast_tensors
from coremltools.converters.mil.frontend.torch.ops import _get_inputs, promote_input_dtypes
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

from partitioner.lowerings.registry import get_converter, set_converter

_stock = get_converter("where.self")


@set_converter("where.self", "where.scalarself", "where.scalarother", "where.scalar")
def _where(context: Any, node: Any) -> None:
    if len(node.inputs) != 3:
        _stock(context, node)
        return
    condition, x, y = _get_inputs(context, node, expected=3)
    x, y = promote_input_dtypes([x, y])
    scalars = [len(value.shape) == 0 for value in (condition, x, y)]
    if not any(scalars):
        _stock(context, node)
        return
    if not all(scalars):
        condition, x, y = pymil_broadcast_tensors([condition, x, y])
    context.add(mb.select(cond=condition, a=x, b=y, name=node.name), node.name)
