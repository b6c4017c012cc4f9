"""Writing operations into the graph of a program."""

from typing import Any

from torch.fx import Node
from torch.fx.node import map_arg


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


def replace_node(old: Node, new: Node) -> None:
    """Lets everything read `new` instead, which also takes the name: signatures know the results by name."""
    name = old.name
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)
    new.name = name
