"""The largest or smallest elements in any order.

Below iOS17 Core ML has them sorted only, and Core ML Tools refuses ``sorted=False``. Sorted ones are in any order too.
"""

from typing import Any

from partitioner.lowerings.arguments import remove_keywords
from partitioner.lowerings.registry import wrap_converter

_SORTED = 4


def _sort(node: Any) -> None:
    if len(node.inputs) > _SORTED:
        node.inputs = [*node.inputs[:_SORTED], True, *node.inputs[_SORTED + 1 :]]
    remove_keywords(node, "sorted")


wrap_converter("topk", _sort)
