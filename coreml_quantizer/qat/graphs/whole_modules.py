"""Modules that an export leaves whole: the graph calls them, whatever Python does inside of them."""

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

_library = torch.library.Library("coreml_quantizer", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("whole_module(Tensor[] inputs, int call) -> Tensor[]")  # type: ignore[no-untyped-call]
_WHOLE = torch.ops.coreml_quantizer.whole_module.default
_TENSOR = object()
"""Stands for a tensor among the arguments of a call."""


@dataclass(frozen=True)
class _Results:
    """What a module returned for an example.

    Attributes:
        leaves: The values, in a flat list.
        spec: The structure that they are in.
        batch: The first size of the module's first tensor, or None.
    """

    leaves: tuple[Any, ...]
    spec: TreeSpec
    batch: int | None

    def like(self, inputs: list[Tensor]) -> list[Tensor]:
        """Returns empty tensors for other inputs; only the first dimension follows theirs, where it did before."""
        tensors = [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]
        sizes: list[list[Any]] = [list(tensor.shape) for tensor in tensors]
        for size in sizes:
            if size and self.batch is not None and size[0] == self.batch:
                size[0] = inputs[0].shape[0]
        return [inputs[0].new_empty(size, dtype=t.dtype) for size, t in zip(sizes, tensors, strict=True)]


@dataclass(frozen=True)
class _Call:
    """One call of a module that stays whole: its arguments with `_TENSOR` for tensors, and what it returns."""

    path: str
    arguments: tuple[Any, ...]
    spec: TreeSpec
    results: _Results


_calls: dict[int, _Call] = {}
_numbers = itertools.count()


@torch.library.register_fake("coreml_quantizer::whole_module", lib=_library)  # type: ignore[untyped-decorator]
def _shapes(inputs: list[Tensor], call: int) -> list[Tensor]:
    return _calls[call].results.like(inputs)


class _Stub(nn.Module):
    """A stand-in for a module while the model is exported, which leaves one operator in the graph."""

    def __init__(self, path: str, results: _Results) -> None:
        super().__init__()
        self.path, self.results = path, results

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        number = next(_numbers)
        others = tuple(_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        _calls[number] = _Call(self.path, others, spec, self.results)
        made = iter(_WHOLE([leaf for leaf in leaves if isinstance(leaf, Tensor)], number))
        filled = [next(made) if isinstance(leaf, Tensor) else leaf for leaf in self.results.leaves]
        return tree_unflatten(filled, self.results.spec)


class WholeModules:
    """The modules of a model that its export leaves whole.

    Args:
        model: The model.
        names: Paths of the modules; those that the model does not have are ignored.
        inputs: Positional inputs of the model, with which it runs once.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], inputs: tuple[Any, ...]) -> None:
        paths = {path for path, _ in model.named_modules()}
        chosen = [name for name in dict.fromkeys(names) if name in paths]
        self._modules = {path: model.get_submodule(path) for path in chosen if not _inside(path, chosen)}
        self._results = _record(model, self._modules, inputs) if self._modules else {}

    @contextmanager
    def stubbed(self, model: nn.Module) -> Iterator[None]:
        """Replaces the modules by stand-ins while the context is open."""
        stubs = {path: _Stub(path, self._results[path]) for path in self._modules if path in self._results}
        try:
            for path, stub in stubs.items():
                _set(model, path, stub)
            yield
        finally:
            for path in stubs:
                _set(model, path, self._modules[path])

    def put_back(self, graph_module: GraphModule) -> GraphModule:
        """Replaces the operators that stand-ins left by calls of the modules, in place."""
        for node in [node for node in graph_module.graph.nodes if node.target is _WHOLE]:
            _call_module(graph_module, node, self._modules)
        if self._modules:
            _calls.clear()
            graph_module.recompile()
        return graph_module


def _call_module(graph_module: GraphModule, node: Node, modules: Mapping[str, nn.Module]) -> None:
    inputs, number = node.args
    assert isinstance(number, int)
    call = _calls[number]
    if call.path not in dict(graph_module.named_modules()):
        graph_module.add_submodule(call.path, modules[call.path])
    tensors = iter(inputs)  # type: ignore[arg-type]
    leaves = [next(tensors) if leaf is _TENSOR else leaf for leaf in call.arguments]
    args, kwargs = tree_unflatten(leaves, call.spec)
    with graph_module.graph.inserting_before(node):
        made = graph_module.graph.call_module(call.path, args, kwargs)
    made.meta = {key: value for key, value in node.meta.items() if key != "val"}
    positions = [index for index, leaf in enumerate(call.results.leaves) if isinstance(leaf, Tensor)]
    for item in list(node.users):
        value = made
        if not call.results.spec.is_leaf():
            with graph_module.graph.inserting_before(item):
                value = graph_module.graph.call_function(_leaf_of, (made, positions[int(item.args[1])]))  # type: ignore[arg-type]
        value.meta = dict(item.meta)
        item.replace_all_uses_with(value)
        graph_module.graph.erase_node(item)
    graph_module.graph.erase_node(node)


def _leaf_of(value: Any, index: int) -> Any:
    """Returns one of the values in a structure."""
    return tree_leaves(value)[index]


def _record(model: nn.Module, modules: Mapping[str, nn.Module], inputs: tuple[Any, ...]) -> dict[str, _Results]:
    """Runs a copy of the model once, and returns what each module returned first."""
    found: dict[str, _Results] = {}
    twin = copy.deepcopy(model)

    def note(path: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any, results: Any) -> None:
            leaves, spec = tree_flatten(results)
            first = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), None)
            batch = first.shape[0] if first is not None and first.ndim else None
            found.setdefault(path, _Results(tuple(leaves), spec, batch))

        return hook

    for path in modules:
        twin.get_submodule(path).register_forward_hook(note(path), with_kwargs=True)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), suppress(Exception):
        twin(*inputs)
    return found


def _inside(path: str, others: Iterable[str]) -> bool:
    return any(path.startswith(f"{other}.") for other in others)


def _set(model: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, module)
