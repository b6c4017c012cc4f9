"""Products of a matrix and a vector, and of two vectors.

The converter of Core ML Tools reads two dimensions of the second operand, which fails when it is a vector.
"""

from typing import Any

from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

from partitioner.lowerings.registry import get_converter, set_converter

_stock = get_converter("matmul")


@set_converter("matmul")
def _matmul(context: Any, node: Any) -> None:
    x, y = _get_inputs(context, node, expected=2)
    if y.rank != 1:
        _stock(context, node)
        return
    axes = [-1]
    if x.rank == 1:
        x = mb.expand_dims(x=x, axes=[0])
        axes = [-2, -1]
    product = mb.matmul(x=x, y=mb.expand_dims(x=y, axes=[1]))
    context.add(mb.squeeze(x=product, axes=axes, name=node.name), node.name)
