"""Tensors filled with one value, scalars included, in the dtype that the program declares.

The converters of Core ML Tools read the dtype from a positional argument, but exported programs give it by keyword. So
the declared dtype is ignored: the result has the dtype of the reference tensor or is floating point. For example, zeros
like a boolean tensor stay boolean, and no operation accepts a floating-point tensor as an index. The empty size of a
scalar becomes an empty float tensor, and the conversion refuses that as a shape. A value that is a size of the input
is unknown until the program runs, and Core ML fills with constants only.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

from partitioner.lowerings.registry import Converter, set_converter
from partitioner.lowerings.sizes import shape_of

_NAMES: Mapping[Any, str] = MappingProxyType(
    {np.bool_: "bool", np.float16: "fp16", np.float32: "fp32", np.int32: "int32"}
)


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
        dtype = _stored_dtype(example.dtype)
        number = inputs[size_position + 1] if value is None else None
        computed = number is not None and number.val is None
        fill = dtype(0 if computed else value if number is None else number.val)
        if example.dim() == 0:
            filled = mb.const(val=fill, name=node.name)
        else:
            size = shape_of(inputs[size_position]) if like else inputs[size_position]
            shape = mb.concat(values=size, axis=0) if isinstance(size, list) else size
            filled = mb.fill(shape=shape, value=fill, name=f"{node.name}_zeros" if computed else node.name)
        context.add(_shifted(filled, number, _NAMES[dtype], node.name) if computed else filled, node.name)

    return convert


def _shifted(zeros: Any, number: Any, dtype: str, name: str) -> Any:
    """Returns zeros plus a number that is known only when the program runs."""
    number = mb.cast(x=number, dtype=dtype)
    return mb.logical_or(x=zeros, y=number, name=name) if dtype == "bool" else mb.add(x=zeros, y=number, name=name)


set_converter("zeros")(_filled(0))
set_converter("ones")(_filled(1))
set_converter("full")(_filled(None))
set_converter("new_zeros", "new_empty")(_filled(0, size_position=1))
set_converter("new_ones")(_filled(1, size_position=1))
set_converter("new_full")(_filled(None, size_position=1))
set_converter("zeros_like", "empty_like")(_filled(0, like=True))
set_converter("ones_like")(_filled(1, like=True))
set_converter("full_like")(_filled(None, like=True))
