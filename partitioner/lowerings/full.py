"""Tensors filled with one value, scalars included, in the dtype that the program declares.

The converters of Core ML Tools read the dtype from a positional argument, but exported programs give it by keyword. So
the declared dtype is ignored: the result has the dtype of the reference tensor or is floating point. For example, zeros
like a boolean tensor stay boolean, and no operation accepts a floating-point tensor as an index. The empty size of a
scalar becomes an empty float tensor, and the conversion refuses that as a shape.
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
    """Returns a converter for an operation that fills a tensor.

    Args:
        value: The value to fill with. None: the argument after the size holds it.
        size_position: Position of the size among the arguments.
        like: Whether the argument at that position is a tensor of the wanted size instead of the size.
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
