"""Copies into another memory format, for example channels last, or into another dtype.

A value of a Core ML program has no memory format, so the copy only converts the dtype. The converters of Core ML Tools
and ExecuTorch assert that the format is contiguous. `partitioner.support.decide` makes sure that the values that leave
a partition are contiguous. Constants of 8-bit integers, for example the indices of lookup tables, are converted here:
below iOS17 Core ML has no cast for them.
"""

from typing import Any

import numpy as np
from coremltools.converters.mil.frontend.torch.ops import noop
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

from partitioner.lowerings.arguments import remove_keywords
from partitioner.lowerings.registry import get_converter, set_converter

_stock = get_converter("dim_order_ops._to_dim_order_copy")


@set_converter("dim_order_ops._clone_dim_order", "dim_order_ops::_clone_dim_order")
def _clone(context: Any, node: Any) -> None:
    noop(context, node)


@set_converter("dim_order_ops._to_dim_order_copy", "dim_order_ops::_to_dim_order_copy")
def _to(context: Any, node: Any) -> None:
    x = context[node.inputs[0]]
    if getattr(x, "val", None) is not None and x.val.dtype in (np.int8, np.uint8):
        dtype = np.float32 if node.meta["val"].is_floating_point() else np.int32
        context.add(mb.const(val=x.val.astype(dtype), name=node.name), node.name)
        return
    remove_keywords(node, "dim_order")
    (_stock if "dtype" in node.kwinputs else noop)(context, node)
