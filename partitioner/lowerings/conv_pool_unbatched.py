"""Convolutions and pools of an input without a batch dimension.

PyTorch takes both forms, Core ML only the batched one. The input gets a batch of one, and the result loses it again.
"""

import copy
from collections.abc import Callable
from typing import Any

from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

import partitioner.lowerings.conv_transpose
import partitioner.lowerings.default_arguments
import partitioner.lowerings.max_pool  # the converters of these three are wrapped here  # noqa: F401
from partitioner.lowerings.registry import Converter, get_converter, set_converter


def _spatial_of_weight(context: Any, node: Any) -> int:
    return len(context[node.inputs[1]].shape) - 2


def _spatial(dimensions: int) -> Callable[[Any, Any], int]:
    return lambda context, node: dimensions


def _batched(stock: Converter, spatial: Callable[[Any, Any], int]) -> Converter:
    def convert(context: Any, node: Any) -> None:
        x = context[node.inputs[0]]
        if x.rank != spatial(context, node) + 1:
            stock(context, node)
            return
        inner = copy.copy(node)
        inner.name = f"{node.name}_batched"
        batched = mb.expand_dims(x=x, axes=(0,), name=f"{node.name}_input")
        context.add(batched)
        inner.inputs = (batched.name, *node.inputs[1:])
        stock(context, inner)
        result = context[inner.name]
        if isinstance(result, (list, tuple)):  # the values of a pool and their indices, of which Core ML has the values
            values = mb.squeeze(x=result[0], axes=(0,), name=node.name)
            context.add((values, *result[1:]), node.name)
        else:
            context.add(mb.squeeze(x=result, axes=(0,), name=node.name), node.name)

    return convert


_CONVOLUTIONS = (
    *("convolution", "conv1d", "conv2d", "conv3d", "conv1d.padding", "conv2d.padding", "conv3d.padding"),
    *("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input"),
)

for _name in _CONVOLUTIONS:
    set_converter(_name)(_batched(get_converter(_name), _spatial_of_weight))
for _dimensions in (1, 2, 3):
    for _name in (f"max_pool{_dimensions}d", f"max_pool{_dimensions}d_with_indices", f"avg_pool{_dimensions}d"):
        set_converter(_name)(_batched(get_converter(_name), _spatial(_dimensions)))
