"""The largest or smallest elements in any order (``topk`` with ``sorted=False``).

Below iOS17 Core ML only returns sorted elements, and Core ML Tools refuses ``sorted=False``. Here the elements are
always sorted: "any order" allows that.
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
