"""Finds the spec of a node from the modules it belongs to."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from coreml_quantizer.config.policy import QuantizationPolicy
from coreml_quantizer.errors import ScopeError, near_matches
from coreml_quantizer.specs import OpSpec

_Module = tuple[str, str]
"""Path and fully qualified class name of a module; the model itself has the path ''."""


@dataclass(frozen=True)
class Governing:
    """The entry of the configuration that governs an operator.

    Attributes:
        spec: What it says; None leaves the operator in floating point.
        entry: Its name in the configuration: "global", "module_name encoder.0", "module_type Linear", "op aten.add".
    """

    spec: OpSpec | None
    entry: str


class ScopeResolver:
    """Resolves nodes of one graph against one policy.

    Strict and non-strict exports both leave `nn_module_stack` as a dict whose values are `(path, class)`; only the
    keys differ, so only the values are read.
    """

    def __init__(self, policy: QuantizationPolicy, graph_module: GraphModule) -> None:
        self._policy = policy
        self._by_stack: dict[tuple[_Module, ...], Governing | None] = {}
        self._by_op = {op: Governing(spec, f"op {op}") for op, spec in policy.by_op.items()}
        self._default = Governing(policy.default, "global")
        self._scoped = bool(policy.by_name or policy.by_type)
        if self._scoped or policy.by_op:
            self._check_everything_matches(graph_module)

    def resolve(self, node: Node) -> OpSpec | None:
        """Returns the spec of `node`; None leaves it in floating point."""
        return self.govern(node).spec

    def govern(self, node: Node) -> Governing:
        """Returns the entry of the configuration that decides about `node`, with its spec."""
        if self._scoped:
            stack = module_stack(node)
            if stack not in self._by_stack:
                self._by_stack[stack] = self._govern_stack(stack)
            found = self._by_stack[stack]
            if found is not None:
                return found
        return self._by_op.get(op_name(node), self._default) if self._by_op else self._default

    def _govern_stack(self, stack: tuple[_Module, ...]) -> Governing | None:
        by_name, by_type = self._policy.by_name, self._policy.by_type
        # A ModuleList is never called, so it stands in no stack: its name is a prefix of its children's paths.
        path = stack[-1][0] if stack else ""
        while path not in by_name and path:
            path = path.rpartition(".")[0]
        if path in by_name:
            return Governing(by_name[path], f"module_name {path}")
        for _, class_name in reversed(stack):
            for candidate in (class_name, class_name.rpartition(".")[2]):
                if candidate in by_type:
                    return Governing(by_type[candidate], f"module_type {candidate}")
        return None

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
