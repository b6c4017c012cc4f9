"""Writing operations into the graph of a program."""

from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from partitioner.graph.nodes import is_viewable


def write_call(place: Node, target: Any, *arguments: Any, **keywords: Any) -> Node:
    """Writes an operation that stands for a part of another one, where the graph inserts at present.

    Args:
        place: The other one, whose line of the model it gets.
        target: The operation.
        *arguments: Its arguments; nodes have example values.
        **keywords: Its keywords.
    """
    node = place.graph.call_function(target, arguments, keywords)
    given = map_arg(arguments, lambda value: value.meta["val"])
    node.meta = {**place.meta, "val": target(*given, **keywords)}
    return node


def write_contiguous(place: Node, value: Node) -> Node:
    """Writes a copy whose elements lie in order; Core ML Tools removes it."""
    return write_call(place, torch.ops.aten.clone.default, value, memory_format=torch.contiguous_format)


def write_viewable(place: Node, value: Node, shape: list[Any]) -> Node:
    """Returns `value` where `shape` is surely a view of it; else writes a copy of which it is one."""
    is_static = all(isinstance(size, int) for size in (*value.meta["val"].shape, *shape))
    return value if is_static and is_viewable(value.meta["val"], shape) else write_contiguous(place, value)


def replace_node(old: Node, new: Node) -> None:
    """Lets everything read `new` instead, which also takes the name: signatures know the results by name."""
    name = old.name
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)
    new.name = name
