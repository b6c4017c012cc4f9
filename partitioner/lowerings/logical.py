"""OR and XOR of booleans, which are bitwise operators in PyTorch and logical operations in Core ML.

`partitioner.support.decide` keeps bitwise operators on integers out of partitions.
"""

from typing import Any

from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

from partitioner.lowerings.registry import Converter, set_converter


def _of_booleans(operation: Any) -> Converter:
    def convert(context: Any, node: Any) -> None:
        x, y = _get_inputs(context, node, expected=2)
        context.add(operation(x=x, y=y, name=node.name), node.name)

    return convert


set_converter("bitwise_or")(_of_booleans(mb.logical_or))
set_converter("bitwise_xor")(_of_booleans(mb.logical_xor))
