"""Scopes: which entry of the configuration governs a node, by the modules it belongs to and by its operator."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import nn
from torch.fx import GraphModule, Node

from coreml_quantizer.config.policy import QuantizationPolicy, Scopes
from coreml_quantizer.errors import ScopeError, near_matches
from coreml_quantizer.graph.nodes import ModuleEntry, module_stack, op_name
from coreml_quantizer.placement.boundaries import Boundaries
from coreml_quantizer.rules import RuleTable
from coreml_quantizer.specs import OpSpec


@dataclass(frozen=True)
class Governing:
    """The entry of the configuration that governs an operator.

    Attributes:
        spec: Its spec; None leaves the operator in floating point.
        entry: Its name in the configuration: "global", "module_name encoder.0", "pattern .*head", "module_type Linear",
            "op aten.add", "skip module_name head", "first_layer", "last_layer".
    """

    spec: OpSpec | None
    entry: str


_BATCH_NORMS = frozenset(
    name
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    for name in (f"{kind.__module__}.{kind.__qualname__}", kind.__qualname__)
)


class ScopeResolver:
    """A resolver that finds the entry of one policy for each node of one graph.

    Strict and non-strict exports both write `nn_module_stack` as a dict whose values are `(path, class)`. Only the
    keys differ, so only the values are read.
    """

    def __init__(self, policy: QuantizationPolicy, graph_module: GraphModule, rules: RuleTable) -> None:
        self._default = Governing(policy.default, "global")
        self._skip = _Matcher(policy.skip, "skip ")
        self._scopes = _Matcher(policy.scopes)
        self._boundaries = Boundaries.of(policy, graph_module, rules)
        _check_everything_matches(policy, graph_module)

    def resolve(self, node: Node) -> OpSpec | None:
        """Returns the spec of `node`; None leaves it in floating point."""
        return self.govern(node).spec

    def govern(self, node: Node) -> Governing:
        """Returns the entry of the configuration that decides about `node`, with its spec."""
        found = self._skip.match(node) or self._scopes.match(node) or self._default
        return self._bounded(node, found) if found.spec is not None and self._boundaries else found

    def _bounded(self, node: Node, found: Governing) -> Governing:
        """Returns `found` without what stays in floating point at the ends of the model."""
        spec, entry = found.spec, self._boundaries.end_of(node)
        assert spec is not None
        if entry is not None:
            weight_only = None if spec.weight is None else replace(spec, input=None, output=None)
            return Governing(weight_only if entry.keeps_weights else None, entry.name)
        if self._boundaries.reads_input(node):
            spec = replace(spec, input=None)
        if self._boundaries.makes_output(node):
            spec = replace(spec, output=None)
        return replace(found, spec=spec)


class _Matcher:
    """A matcher of nodes against scopes; it looks at every module stack once."""

    def __init__(self, scopes: Scopes, prefix: str = "") -> None:
        self._by_name, self._by_type = scopes.by_name, scopes.by_type
        self._by_pattern = [(re.compile(key), key, spec) for key, spec in scopes.by_pattern.items()]
        self._by_op = {op: Governing(spec, f"{prefix}op {op}") for op, spec in scopes.by_op.items()}
        self._scoped = bool(scopes.by_name or scopes.by_type or scopes.by_pattern)
        self._prefix = prefix
        self._by_stack: dict[tuple[ModuleEntry, ...], Governing | None] = {}

    def match(self, node: Node) -> Governing | None:
        """Returns the entry that matches `node`, None when none does."""
        if self._scoped:
            stack = module_stack(node)
            if stack not in self._by_stack:
                self._by_stack[stack] = self._match_stack(stack)
            found = self._by_stack[stack]
            if found is not None:
                return found
        return self._by_op.get(op_name(node)) if self._by_op else None

    def _match_stack(self, stack: tuple[ModuleEntry, ...]) -> Governing | None:
        # A ModuleList is never called, so it stands in no stack: its name is a prefix of its children's paths.
        paths = list(_enclosing(stack[-1][0] if stack else ""))
        for path in paths:
            if path in self._by_name:
                return Governing(self._by_name[path], f"{self._prefix}module_name {path}")
        for expression, key, spec in self._by_pattern:
            if any(expression.fullmatch(path) for path in paths):
                return Governing(spec, f"{self._prefix}pattern {key}")
        for _, class_name in reversed(stack):
            for candidate in (class_name, class_name.rpartition(".")[2]):
                if candidate in self._by_type:
                    return Governing(self._by_type[candidate], f"{self._prefix}module_type {candidate}")
        return None


def _enclosing(path: str) -> Iterator[str]:
    """Yields a module path, then the paths of the modules around it, and last '' for the model itself."""
    yield path
    while path:
        path = path.rpartition(".")[0]
        yield path


def _check_everything_matches(policy: QuantizationPolicy, graph_module: GraphModule) -> None:
    both = (policy.scopes, policy.skip)
    if not any((s.by_name, s.by_pattern, s.by_type, s.by_op) != ({}, {}, {}, {}) for s in both):
        return
    paths = {name for name, _ in graph_module.named_modules()}
    # One that torchao folded into a convolution leaves its buffers, but no call that tells its type.
    folds = any(hasattr(module, "running_var") for module in graph_module.modules())
    types = set(_BATCH_NORMS) if folds else set()
    ops: set[str] = set()
    for node in graph_module.graph.nodes:
        if node.op != "call_function":
            continue
        ops.add(op_name(node))
        for path, class_name in module_stack(node):
            paths.add(path)
            types.update((class_name, class_name.rpartition(".")[2]))
    names, patterns, type_field, op_field = policy.fields
    problems: list[str] = []
    for scopes, prefix in zip(both, ("", "skip."), strict=True):
        problems += _unmatched(prefix + names, scopes.by_name, paths)
        problems += _unmatched_patterns(prefix + patterns, scopes.by_pattern, paths)
        problems += _unmatched(prefix + type_field, scopes.by_type, types)
        problems += _unmatched(prefix + op_field, scopes.by_op, ops)
    if problems:
        raise ScopeError("The configuration names what the model does not have:\n  " + "\n  ".join(problems))


def _unmatched(field: str, wanted: Iterable[str], known: set[str]) -> Iterator[str]:
    for name in wanted:
        if name not in known:
            yield f"{field}: nothing is called {name!r}.{near_matches(name, known)}"


def _unmatched_patterns(field: str, wanted: Mapping[str, object], paths: set[str]) -> Iterator[str]:
    for pattern in wanted:
        if not any(re.fullmatch(pattern, path) for path in paths):
            inside = next((path for path in sorted(paths) if re.search(pattern, path)), None)
            hint = (
                ""
                if inside is None
                else f" It matches inside of {inside!r}; write '.*{pattern}.*' for any path with it."
            )
            yield f"{field}: no module path matches {pattern!r} as a whole.{hint or near_matches(pattern, paths)}"
