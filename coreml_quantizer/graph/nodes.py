"""Facts about a node of an exported graph: which operator it calls, and in which modules it was made."""

from torch.fx import Node

ModuleEntry = tuple[str, str]
"""Path and fully qualified class name of a module; the model itself has the path ''."""


def packet_of(node: Node) -> object:
    """Returns the ATen operator that a node calls, the same for all of its overloads, or any other target."""
    return getattr(node.target, "overloadpacket", node.target)


def op_name(node: Node) -> str:
    """Returns the ATen name of a call, such as "aten.add", the same for every overload and for the in-place form."""
    packet = getattr(node.target, "overloadpacket", None)
    return "" if packet is None else str(packet).rstrip("_")


def module_stack(node: Node) -> tuple[ModuleEntry, ...]:
    """Returns the modules `node` was made in, outermost first, as (path, fully qualified class name)."""
    stack = node.meta.get("nn_module_stack") or {}
    return tuple((path, _class_name(kind)) for path, kind in stack.values())


def _class_name(kind: object) -> str:
    return kind if isinstance(kind, str) else f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', '')}"
