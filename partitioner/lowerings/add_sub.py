"""Sums and differences with a factor: ``x + alpha * y``, ``x - alpha * y`` and, for rsub, ``y - alpha * x``.

The converters of Core ML Tools refuse `alpha` as a positional argument and ignore it as a keyword argument. Exported
programs give it by keyword (coremltools#2573).
"""

from typing import Any

import numpy as np
from coremltools.converters.mil.frontend.torch.ops import _get_inputs, promote_input_dtypes
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

from partitioner.lowerings.arguments import argument
from partitioner.lowerings.registry import Converter, get_converter, set_converter


def _with_factor(stock: Converter, operation: Any) -> Converter:
    def convert(context: Any, node: Any) -> None:
        alpha = argument(node, 2, "alpha", 1)
        node.inputs = node.inputs[:2]
        if alpha == 1:
            stock(context, node)
            return
        x, y = _get_inputs(context, node, expected=2)
        if node.kind == "rsub":
            x, y = y, x
        scale = np.float32(alpha) if node.meta["val"].is_floating_point() else np.int32(alpha)
        x, y, scale = promote_input_dtypes([x, y, scale])
        context.add(operation(x=x, y=mb.mul(x=y, y=scale), name=node.name), node.name)

    return convert


set_converter("add")(_with_factor(get_converter("add"), mb.add))
set_converter("sub", "rsub")(_with_factor(get_converter("sub"), mb.sub))
