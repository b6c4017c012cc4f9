"""Overlapping windows along one dimension (``Tensor.unfold``)."""

from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

from partitioner.lowerings.registry import set_converter


@set_converter("unfold_copy", "unfold")
def _unfold(context: Any, node: Any) -> None:
    x = context[node.inputs[0]]
    dimension, size, step = node.inputs[1:4]
    axis = dimension % x.rank
    windows = node.meta["val"].shape[axis]
    # (windows, size): the elements of each window; the gather puts both in place of the dimension.
    indices = np.arange(windows)[:, None] * step + np.arange(size)
    gathered = mb.gather(x=x, indices=indices.astype(np.int32), axis=axis)
    order = [index for index in range(x.rank + 1) if index != axis + 1]
    context.add(mb.transpose(x=gathered, perm=[*order, axis + 1], name=node.name), node.name)
