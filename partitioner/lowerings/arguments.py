"""Arguments of the operator call that a converter is given.

Core ML Tools keeps those given by position in `node.inputs` and those given by keyword in `node.kwinputs`, each in a
tuple of one.
"""

from typing import Any


def argument(node: Any, position: int, name: str, default: Any = None) -> Any:
    """Returns an argument given by position or by keyword, as the graph has it: a number, text or a value's name."""
    return node.inputs[position] if len(node.inputs) > position else keyword(node, name, default)


def keyword(node: Any, name: str, default: Any = None) -> Any:
    """Returns an argument given by keyword."""
    return (node.kwinputs or {}).get(name, (default,))[0]


def remove_keywords(node: Any, *names: str) -> None:
    """Removes arguments given by keyword, in place."""
    node.kwinputs = {name: value for name, value in (node.kwinputs or {}).items() if name not in names}
