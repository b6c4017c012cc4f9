"""The index of the largest or smallest element of the whole tensor (``argmax`` and ``argmin`` without a dimension).

The converters of Core ML Tools leave the axis out. In Core ML that does not mean "of the flattened input": it crashes
(executorch#11715).
"""

from typing import Any

from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

from partitioner.lowerings.arguments import argument
from partitioner.lowerings.registry import Converter, get_converter, set_converter


def _over_everything(stock: Converter, operation: Any) -> Converter:
    def convert(context: Any, node: Any) -> None:
        if argument(node, 1, "dim") is not None:
            stock(context, node)
            return
        x = _get_inputs(context, node, min_expected=1)[0]
        index = operation(x=mb.reshape(x=x, shape=(-1,)), axis=0, keep_dims=True)
        # A scalar, or with keepdim a one for every dimension of the input.
        shape = node.meta["val"].shape
        result = mb.reshape(x=index, shape=tuple(shape), name=node.name) if shape else None
        context.add(result or mb.squeeze(x=index, axes=(0,), name=node.name), node.name)

    return convert


set_converter("argmax")(_over_everything(get_converter("argmax"), mb.reduce_argmax))
set_converter("argmin")(_over_everything(get_converter("argmin"), mb.reduce_argmin))
