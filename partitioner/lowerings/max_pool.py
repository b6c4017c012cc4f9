"""Max pooling without a stride argument.

Exported programs omit arguments that have their default values, so ``F.max_pool2d(x, 2)`` has no stride. The converter
of Core ML Tools refuses it ("got 2 input(s), expected minimum 3 inputs"). The default stride is the kernel size.
"""

from typing import Any

from partitioner.lowerings.registry import wrap_converter


def _default_stride(node: Any) -> None:
    if len(node.inputs) == 2:
        node.inputs = [*node.inputs, node.inputs[1]]


for _dimensions in (1, 2, 3):
    wrap_converter(f"max_pool{_dimensions}d", _default_stride)
    wrap_converter(f"max_pool{_dimensions}d_with_indices", _default_stride)
