"""Operators with an argument for the mode, as modules of the graph that follow the model's mode."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from coreml_quantizer.graph.modes import mode_argument
from coreml_quantizer.qat.schedule import Mode


class Modal(nn.Module):
    """An operator that is called as it was exported while the model trains, and as in evaluation otherwise."""

    def __init__(self, op: torch._ops.OpOverload) -> None:
        super().__init__()
        self.op = op
        rule, self.position = mode_argument(op)
        self.name, self.evaluating = rule.name, rule.evaluating

    @classmethod
    def take(cls, model: GraphModule, node: Node, name: str, mode: Node) -> None:
        """Turns `node`, a call of an operator in training mode, into a call of module `name` that also gets `mode`."""
        assert isinstance(node.target, torch._ops.OpOverload)
        model.add_submodule(name, cls(node.target))
        # Not as a keyword, which torchao refuses to be computed.
        node.op, node.target, node.args = "call_module", name, (mode, *node.args)

    def forward(self, mode: Mode, *args: Any, **keywords: Any) -> Any:
        """Returns the result of the operator for its arguments in the given mode."""
        if not mode:
            args, keywords = self._evaluating(args, keywords)
        return self.op(*args, **keywords)

    def restore(self, node: Node) -> None:
        """Turns the node that calls this module into a call of the operator in evaluation mode."""
        node.op, node.target = "call_function", self.op
        node.args, node.kwargs = self._evaluating(node.args[1:], node.kwargs)

    def _evaluating(self, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        changed = tuple(self.evaluating if index == self.position else value for index, value in enumerate(args))
        return changed, {name: self.evaluating if name == self.name else value for name, value in keywords.items()}

    def extra_repr(self) -> str:
        return str(self.op)
