"""Finds the spec of a node from the modules it belongs to."""

from collections.abc import Iterable, Iterator

from torch.fx import GraphModule, Node

from coreml_quantizer.config.policy import QuantizationPolicy
from coreml_quantizer.errors import ScopeError, near_matches
from coreml_quantizer.specs import OpSpec

_Module = tuple[str, str]
"""Path and fully qualified class name of a module; the model itself has the path ''."""


class ScopeResolver:
    """Resolves nodes of one graph against one policy.

    Strict and non-strict exports both leave `nn_module_stack` as a dict whose values are `(path, class)`; only the
    keys differ, so only the values are read.
    """

    def __init__(self, policy: QuantizationPolicy, graph_module: GraphModule) -> None:
        self._policy = policy
        self._by_stack: dict[tuple[_Module, ...], OpSpec | _NotScoped | None] = {}
        self._scoped = bool(policy.by_name or policy.by_type)
        if self._scoped or policy.by_op:
            self._check_everything_matches(graph_module)

    def resolve(self, node: Node) -> OpSpec | None:
        """Returns the spec of `node`; None leaves it in floating point."""
        if self._scoped:
            stack = module_stack(node)
            if stack not in self._by_stack:
                self._by_stack[stack] = self._resolve_stack(stack)
            found = self._by_stack[stack]
            if not isinstance(found, _NotScoped):
                return found
        if self._policy.by_op:
            op = op_name(node)
            if op in self._policy.by_op:
                return self._policy.by_op[op]
        return self._policy.default

    def _resolve_stack(self, stack: tuple[_Module, ...]) -> "OpSpec | _NotScoped | None":
        by_name, by_type = self._policy.by_name, self._policy.by_type
        # A ModuleList is never called, so it stands in no stack: its name is a prefix of its children's paths.
        path = stack[-1][0] if stack else ""
        while path not in by_name and path:
            path = path.rpartition(".")[0]
        if path in by_name:
            return by_name[path]
        for _, class_name in reversed(stack):
            for candidate in (class_name, class_name.rpartition(".")[2]):
                if candidate in by_type:
                    return by_type[candidate]
        return _NOT_SCOPED

    def _check_everything_matches(self, graph_module: GraphModule) -> None:
        paths = {name for name, _ in graph_module.named_modules()}
        types: set[str] = set()
        ops: set[str] = set()
        for node in graph_module.graph.nodes:
            if node.op != "call_function":
                continue
            ops.add(op_name(node))
            for path, class_name in module_stack(node):
                paths.add(path)
                types.update((class_name, class_name.rpartition(".")[2]))
        problems = [
            *_unmatched("module_name_configs", self._policy.by_name, paths),
            *_unmatched("module_type_configs", self._policy.by_type, types),
            *_unmatched("module_type_configs", self._policy.by_op, ops),
        ]
        if problems:
            raise ScopeError("The configuration names what the model does not have:\n  " + "\n  ".join(problems))


class _NotScoped:
    """Marks a module stack that no name and no type of the policy covers; None already means floating point."""


_NOT_SCOPED = _NotScoped()


def op_name(node: Node) -> str:
    """Returns the ATen name of a call, such as "aten.add", the same for every overload and for the in-place form."""
    packet = getattr(node.target, "overloadpacket", None)
    return "" if packet is None else str(packet).rstrip("_")


def module_stack(node: Node) -> tuple[_Module, ...]:
    """Returns the modules `node` was made in, outermost first, as (path, fully qualified class name)."""
    stack = node.meta.get("nn_module_stack") or {}
    return tuple((path, _class_name(kind)) for path, kind in stack.values())


def _class_name(kind: object) -> str:
    return kind if isinstance(kind, str) else f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', '')}"


def _unmatched(field: str, wanted: Iterable[str], known: set[str]) -> Iterator[str]:
    for name in wanted:
        if name not in known:
            yield f"{field}: nothing is called {name!r}.{near_matches(name, known)}"
