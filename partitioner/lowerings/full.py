"""Tensors that hold one value, in the dtype that the program declares, scalars among them.

The converters of Core ML Tools read the dtype from a positional argument; exported programs give it by keyword, and the
result had the dtype of the reference, or was floating point, whatever was asked for: a mask of zeros like a boolean
tensor stayed boolean, and no operation accepts floating point as an index. A scalar's empty size became an empty float
tensor, which the conversion refuses as a shape.
"""

from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil.types.symbolic import any_symbolic

from partitioner.lowerings.registry import Converter, set_converter


def _stored_dtype(dtype: torch.dtype) -> Any:
    if dtype == torch.bool:
        return np.bool_
    if dtype == torch.float16:
        return np.float16
    return np.float32 if dtype.is_floating_point else np.int32


def _filled(value: int | None, size_position: int = 0, *, like: bool = False) -> Converter:
    """Returns a converter of an operation that fills.

    Args:
        value: What it fills with, or None when that is the argument behind the size.
        size_position: Position of the size among the arguments.
        like: Whether a tensor of that size stands in place of the size.
    """

    def convert(context: Any, node: Any) -> None:
        inputs = _get_inputs(context, node, min_expected=1)
        example = node.meta["val"]
        number = inputs[size_position + 1].val if value is None else value
        fill = _stored_dtype(example.dtype)(number)
        if example.dim() == 0:
            context.add(mb.const(val=fill, name=node.name), node.name)
            return
        size = _size_of(inputs[size_position]) if like else inputs[size_position]
        shape = mb.concat(values=size, axis=0) if isinstance(size, list) else size
        context.add(mb.fill(shape=shape, value=fill, name=node.name), node.name)

    return convert


def _size_of(x: Any) -> Any:
    return mb.shape(x=x) if any_symbolic(x.shape) else np.asarray(x.shape, np.int32)


set_converter("zeros")(_filled(0))
set_converter("ones")(_filled(1))
set_converter("full")(_filled(None))
set_converter("new_zeros", "new_empty")(_filled(0, size_position=1))
set_converter("new_ones")(_filled(1, size_position=1))
set_converter("new_full")(_filled(None, size_position=1))
set_converter("zeros_like", "empty_like")(_filled(0, like=True))
set_converter("ones_like")(_filled(1, like=True))
set_converter("full_like")(_filled(None, like=True))
