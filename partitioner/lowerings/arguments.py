"""Access to the arguments of the operator call that a converter converts.

Core ML Tools keeps arguments given by position in `node.inputs`. It keeps arguments given by keyword in
`node.kwinputs`, each in a tuple of one.
"""

from typing import Any


def argument(node: Any, position: int, name: str, default: Any = None) -> Any:
    """Returns an argument given by position or by keyword, as it is in the graph: a number, text or a value's name."""
    return node.inputs[position] if len(node.inputs) > position else keyword(node, name, default)


def keyword(node: Any, name: str, default: Any = None) -> Any:
    """Returns an argument given by keyword."""
    return (node.kwinputs or {}).get(name, (default,))[0]


def remove_keywords(node: Any, *names: str) -> None:
    """Removes arguments given by keyword, in place."""
    node.kwinputs = {name: value for name, value in (node.kwinputs or {}).items() if name not in names}
