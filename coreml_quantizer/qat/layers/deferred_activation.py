"""Clamping activations that are left to the fake quantizer behind them, which clamps anyway; this saves two passes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from coreml_quantizer.qat.quantizers.estimated import FakeQuantize
from coreml_quantizer.qat.quantizers.rounding import Interval

aten = torch.ops.aten

_HIGHEST = float("inf")


def _bounds(node: Node) -> Interval:
    given: list[Any] = list(node.args[1:])
    defaults: list[Any] = [-1.0, 1.0]
    low, high = given + defaults[len(given) :]
    return float(low), float(high)


CLAMPS: Mapping[Any, Callable[[Node], Interval]] = MappingProxyType(
    {
        aten.relu.default: lambda _: (0.0, _HIGHEST),
        aten.relu_.default: lambda _: (0.0, _HIGHEST),
        aten.relu6.default: lambda _: (0.0, 6.0),
        aten.relu6_.default: lambda _: (0.0, 6.0),
        aten.hardtanh.default: _bounds,
        aten.hardtanh_.default: _bounds,
    }
)
"""Operators that clamp, each with a function that returns the two limits for a call."""

_OUT_OF_PLACE = {
    aten.relu_.default: aten.relu.default,
    aten.relu6_.default: aten.relu6.default,
    aten.hardtanh_.default: aten.hardtanh.default,
}


class DeferredActivation(nn.Module):
    """An activation that clamps, unless the fake quantizer that reads the result clamps."""

    def __init__(self, op: Callable[..., Tensor], arguments: tuple[Any, ...], quantizer: FakeQuantize) -> None:
        super().__init__()
        self.op = op
        self.arguments = arguments
        # In a tuple, because the graph has the quantizer already.
        self._quantizer = (quantizer,)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activation of `x`, or `x` if the fake quantizer clamps it."""
        return x if self._quantizer[0].clips else self.op(x, *self.arguments)

    def restore(self, node: Node) -> None:
        """Turns the node that calls this module into a call of the operator again."""
        node.op, node.target, node.args = "call_function", self.op, (*node.args, *self.arguments)

    def extra_repr(self) -> str:
        return str(self.op)


def defer_activations(graph_module: GraphModule) -> None:
    """Defers every clamping activation whose only reader is a plain fake quantizer."""
    found = [node for node in graph_module.graph.nodes if node.target in CLAMPS and len(node.users) == 1]
    for index, node in enumerate(found):
        (reader,) = node.users
        quantizer = graph_module.get_submodule(reader.target) if reader.op == "call_module" else None
        if type(quantizer) is not FakeQuantize or quantizer.leads or not quantizer.follows_extremes:
            continue
        quantizer.clip = CLAMPS[node.target](node)
        op = _OUT_OF_PLACE.get(node.target, node.target)
        name = f"_deferred_activation_{index}"
        graph_module.add_submodule(name, DeferredActivation(op, tuple(node.args[1:]), quantizer))
        node.op, node.target, node.args = "call_module", name, node.args[:1]
