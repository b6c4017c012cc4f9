"""Tensors of zeros and ones, in the dtype that the program declares, scalars among them.

The converters of Core ML Tools read the dtype from a positional argument; exported programs give it by keyword, and the
result was floating point whatever was asked for, which no operation accepts as an index. A scalar's empty size became
an empty float tensor, which the conversion refuses as a shape.
"""

from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

from partitioner.lowerings.registry import Converter, set_converter


def _stored_dtype(dtype: torch.dtype) -> Any:
    if dtype == torch.bool:
        return np.bool_
    if dtype == torch.float16:
        return np.float16
    return np.float32 if dtype.is_floating_point else np.int32


def _filled(value: int, size_position: int = 0) -> Converter:
    def convert(context: Any, node: Any) -> None:
        size = _get_inputs(context, node, min_expected=1)[size_position]
        example = node.meta["val"]
        fill = _stored_dtype(example.dtype)(value)
        if example.dim() == 0:
            context.add(mb.const(val=fill, name=node.name), node.name)
            return
        shape = mb.concat(values=size, axis=0) if isinstance(size, list) else size
        context.add(mb.fill(shape=shape, value=fill, name=node.name), node.name)

    return convert


set_converter("zeros")(_filled(0))
set_converter("ones")(_filled(1))
set_converter("new_zeros", "new_empty")(_filled(0, size_position=1))
set_converter("new_ones")(_filled(1, size_position=1))
