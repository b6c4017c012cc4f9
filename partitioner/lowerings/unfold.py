"""Overlapping windows along one dimension (``Tensor.unfold``), whose size may vary."""

from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil.types.symbolic import is_symbolic

from partitioner.lowerings.registry import set_converter
from partitioner.lowerings.sizes import size_of


@set_converter("unfold_copy", "unfold")
def _unfold(context: Any, node: Any) -> None:
    x = context[node.inputs[0]]
    dimension, size, step = node.inputs[1:4]
    axis = dimension % x.rank
    # (windows, size): the elements of each window; the gather puts both in place of the dimension.
    gathered = mb.gather(x=x, indices=_places(x, axis, size, step), axis=axis)
    order = [index for index in range(x.rank + 1) if index != axis + 1]
    context.add(mb.transpose(x=gathered, perm=[*order, axis + 1], name=node.name), node.name)


def _places(x: Any, axis: int, size: int, step: int) -> Any:
    within = np.arange(size, dtype=np.int32)
    if not is_symbolic(x.shape[axis]):
        windows = (x.shape[axis] - size) // step + 1
        return np.arange(windows, dtype=np.int32)[:, None] * np.int32(step) + within
    # The last window begins at most `size` elements before the end.
    starts = mb.range_1d(start=0, end=mb.sub(x=size_of(x, axis), y=size - 1), step=step)
    return mb.add(x=mb.expand_dims(x=starts, axes=[1]), y=within[None])
