"""Logarithms of cumulative sums of exponentials (``logcumsumexp``).

Core ML Tools adds up the exponentials as they are: those of 89, or in float16 of 12, are infinite. Here every element
is joined with the one that is 1, 2, 4, ... places before it, by ``log(exp(a) + exp(b))`` relative to the larger one.
"""

from typing import Any

import numpy as np
from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil.types.symbolic import is_symbolic

from partitioner.graph.size_bounds import largest_size
from partitioner.lowerings.registry import set_converter
from partitioner.lowerings.sizes import size_of


@set_converter("logcumsumexp", "_logcumsumexp")
def _logcumsumexp(context: Any, node: Any) -> None:
    x, dim = _get_inputs(context, node, expected=2)
    if x.rank == 0:
        context.add(mb.identity(x=x, name=node.name))
        return
    axis = int(dim.val) % x.rank
    places = _places(x, axis)
    most = largest_size(node.meta["val"].shape[axis])
    if most is None:
        raise ValueError("the dimension has no upper bound; export with torch.export.Dim('name', max=...)")
    distance = 1
    while distance < most:
        joined = _joined(x, _moved(x, axis, distance))
        x = mb.select(cond=mb.greater_equal(x=places, y=distance), a=joined, b=x)
        distance *= 2
    context.add(mb.identity(x=x, name=node.name))


def _places(x: Any, axis: int) -> Any:
    """Returns the index of every element along an axis."""
    size = size_of(x, axis)
    places = mb.range_1d(start=0, end=size, step=1) if is_symbolic(x.shape[axis]) else np.arange(size, dtype=np.int32)
    behind = list(range(1, x.rank - axis))
    return mb.expand_dims(x=places, axes=behind) if behind else places


def _moved(x: Any, axis: int, distance: int) -> Any:
    """Returns for every place the element that is some places before it, and 0 where there is none."""
    before = [distance if index == axis else 0 for index in range(x.rank)]
    padded = mb.pad(x=x, pad=[amount for size in before for amount in (size, 0)], mode="constant", constant_val=0.0)
    others = [index != axis for index in range(x.rank)]
    return mb.slice_by_index(
        x=padded, begin=[0] * x.rank, end=[-size for size in before], begin_mask=[True] * x.rank, end_mask=others
    )


def _joined(x: Any, y: Any) -> Any:
    """Returns ``log(exp(x) + exp(y))``, infinities included."""
    larger, smaller = mb.maximum(x=x, y=y), mb.minimum(x=x, y=y)
    gap = mb.select(cond=mb.equal(x=larger, y=smaller), a=0.0, b=mb.sub(x=smaller, y=larger))
    return mb.add(x=larger, y=mb.log(x=mb.exp(x=gap), epsilon=1.0))
