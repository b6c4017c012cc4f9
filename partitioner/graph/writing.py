"""Helpers that write operations into the graph of a program."""

from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from partitioner.graph.nodes import is_viewable


def write_call(place: Node, target: Any, *arguments: Any, **keywords: Any) -> Node:
    """Writes an operation that stands for a part of another one, at the graph's current insertion point.

    Args:
        place: The other operation. The new one gets its metadata, and with it its source line in the model.
        target: The new operation.
        *arguments: The positional arguments; nodes among them have example values.
        **keywords: The keyword arguments.
    """
    node = place.graph.call_function(target, arguments, keywords)
    given = map_arg(arguments, lambda value: value.meta["val"])
    node.meta = {**place.meta, "val": target(*given, **keywords)}
    return node


def write_contiguous(place: Node, value: Node) -> Node:
    """Writes a copy with contiguous elements; Core ML Tools removes it."""
    return write_call(place, torch.ops.aten.clone.default, value, memory_format=torch.contiguous_format)


def write_viewable(place: Node, value: Node, shape: list[Any]) -> Node:
    """Returns `value` if it surely has a view of `shape`. If not, writes a contiguous copy and returns that."""
    is_static = all(isinstance(size, int) for size in (*value.meta["val"].shape, *shape))
    return value if is_static and is_viewable(value.meta["val"], shape) else write_contiguous(place, value)


def replace_node(old: Node, new: Node) -> None:
    """Replaces `old` with `new` for all users, and erases `old`.

    The new node takes the name of the old one, because signatures refer to results by name.
    """
    name = old.name
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)
    new.name = name
