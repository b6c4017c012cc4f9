"""A calibrated graph whose quantization can be switched on and off, module by module."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from coreml_quantizer.calibration.observing import observers_of
from coreml_quantizer.graph.modes import DROPOUTS
from coreml_quantizer.graph.nodes import module_stack, packet_of
from coreml_quantizer.graph.values import evaluate, find_constants, find_written_values, written_buffers
from coreml_quantizer.half.rounding import rounded_to_half
from coreml_quantizer.placement.decisions import decisions_of

_PREFIX = "switch_"
_Function = Callable[[Tensor], Tensor]


class _Switch(nn.Module):
    """A switch that quantizes and dequantizes when it is on, and computes in floating point when it is off.

    Attributes:
        module: Path of the module that reads the result; the switch turns on and off with this module.
        on: Whether the switch is on.
    """

    def __init__(self, module: str, quantize: _Function, leave: _Function) -> None:
        super().__init__()
        self.module = module
        self.on = False
        self._quantize, self._leave = quantize, leave

    def forward(self, x: Tensor) -> Tensor:
        return self._quantize(x) if self.on else self._leave(x)


class SwitchedGraph:
    """A copy of a calibrated graph with a switch at each quantized value, all off at first.

    With all switches on, it computes the same as the converted graph. With all switches off, it computes the same as a
    graph whose configuration quantizes nothing: its weights are rounded to float16, as Core ML stores them.

    Attributes:
        graph_module: The graph, which is called as the prepared graph is.
    """

    def __init__(self, prepared: GraphModule) -> None:
        """Makes the copy and its switches.

        Args:
            prepared: A calibrated graph from `prepare_pt2e`; it is not changed.

        Raises:
            CalibrationError: The graph has no observers of this package, or an observer saw no values.
            QuantizerError: The graph carries no record of what was quantized.
        """
        observers = observers_of(prepared)
        modules = {decision.node: decision.module for decision in decisions_of(prepared) if decision.outcome != "float"}
        self.graph_module = copy.deepcopy(prepared)
        converted = convert_pt2e(copy.deepcopy(prepared))
        _Builder(self.graph_module, converted, frozenset(observers), modules).build()
        self._switches = [module for module in self.graph_module.modules() if isinstance(module, _Switch)]
        self._written = [(buffer, buffer.clone()) for buffer in written_buffers(self.graph_module).values()]

    def modules(self) -> list[str]:
        """Returns the paths of modules with their own quantized operators, in running order; "" is the model."""
        return list(dict.fromkeys(switch.module for switch in self._switches))

    def switch(self, on: Callable[[str], bool]) -> GraphModule:
        """Turns on the switches of the modules that `on` selects, turns off the others, and resets mutable buffers.

        Args:
            on: Takes the path of a module; returns whether its switches are on.

        Returns:
            The graph.
        """
        for switch in self._switches:
            switch.on = on(switch.module)
        for buffer, value in self._written:
            buffer.copy_(value)
        return self.graph_module


class _Builder:
    def __init__(
        self, graph_module: GraphModule, converted: GraphModule, observers: frozenset[str], modules: dict[str, str]
    ) -> None:
        nodes = list(graph_module.graph.nodes)
        self._graph_module, self._converted = graph_module, converted
        self._observers, self._modules = observers, modules
        self._constants = find_constants(nodes, find_written_values(nodes))
        self._counterparts = {node.name: node for node in converted.graph.nodes}
        self._made: dict[tuple[Node, str], Node] = {}

    def build(self) -> None:
        graph = self._graph_module.graph
        for node in list(graph.nodes):
            if not self._observes(node):
                self._switch_inputs(node)
        for node in reversed(list(graph.nodes)):
            if self._observes(node):
                graph.erase_node(node)
        self._graph_module.delete_all_unused_submodules()
        self._graph_module.recompile()

    def _observes(self, node: Node) -> bool:
        return node.op == "call_module" and node.target in self._observers

    def _switch_inputs(self, node: Node) -> None:
        observed = [source for source in node.all_input_nodes if self._observes(source)]
        if not observed:
            return
        # Conversion replaces each observer, and leaves everything else its name and its arguments.
        before, after = _arguments(node), _arguments(self._counterparts[node.name])
        # A dropout passes on what it reads, which counts with the module that made it.
        module = None if _is_dropout(node) else self._modules.get(node.name)
        for source, quantized in zip(before, after, strict=True):
            if self._observes(source):
                owner = _module_of(source) if module is None else module
                node.replace_input_with(source, self._switched(source, quantized, owner))

    def _switched(self, observer: Node, quantized: Node, module: str) -> Node:
        """Returns the call of a switch of `module` that replaces `observer` and computes `quantized`."""
        key = (observer, module)
        if key not in self._made:
            source = observer.all_input_nodes[0]
            if source in self._constants:
                quantize = _always(evaluate(quantized, self._converted))
                leave = _always(rounded_to_half(evaluate(source, self._graph_module).detach()))
            else:
                leave = _unchanged
                integers = quantized.all_input_nodes[0]
                quantize = _through(self._call(integers), self._call(quantized))
                if self._observes(source):
                    source = self._switched(source, integers.all_input_nodes[0], module)
            name = f"{_PREFIX}{len(self._made)}"
            self._graph_module.add_module(name, _Switch(module, quantize, leave))
            with self._graph_module.graph.inserting_after(source):
                self._made[key] = self._graph_module.graph.call_module(name, (source,))
        return self._made[key]

    def _call(self, node: Node) -> _Function:
        """Returns a function that applies the operator of `node` to its first argument, the others evaluated."""
        target: Any = node.target
        others = map_arg(node.args[1:], lambda constant: evaluate(constant, self._converted))
        named = map_arg(node.kwargs, lambda constant: evaluate(constant, self._converted))
        return lambda x: target(x, *others, **named)


def _arguments(node: Node) -> list[Node]:
    """Returns all nodes among the arguments of a call, repeated ones included."""
    found: list[Node] = []
    map_arg((node.args, node.kwargs), found.append)
    return found


def _module_of(observer: Node) -> str:
    """Returns the path of the module that made the value of `observer`, whose reader has no path of its own here."""
    node = observer
    while node.op == "call_module" or _is_dropout(node):
        node = node.all_input_nodes[0]
    stack = module_stack(node)
    return stack[-1][0] if stack else ""


def _is_dropout(node: Node) -> bool:
    """Returns whether `node` is a dropout, which does nothing in a calibrated graph."""
    return node.op == "call_function" and packet_of(node) in DROPOUTS


def _unchanged(x: Tensor) -> Tensor:
    return x


def _always(value: Tensor) -> _Function:
    return lambda _: value


def _through(first: _Function, second: _Function) -> _Function:
    return lambda x: second(first(x))


def inside(path: str, modules: Iterable[str]) -> bool:
    """Returns whether `path` is one of `modules`, or inside one of them."""
    return any(path == module or path.startswith(f"{module}.") for module in modules)
