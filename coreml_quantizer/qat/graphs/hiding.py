"""The hiding of batch norms from torchao, which would trace 96 patterns (10 s to 30 s) if it saw one."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from coreml_quantizer.qat.layers.batch_norm import BatchNorm

aten = torch.ops.aten

_PREFIX = "_batch_norm"


@dataclass(frozen=True)
class HiddenBatchNorm:
    """A batch norm that a module replaces.

    Attributes:
        node: Its node, which now calls the module; annotations that refer to the node stay valid.
        args: The arguments of the operator call.
        module: The module.
    """

    node: Node
    args: tuple[Any, ...]
    module: BatchNorm

    @property
    def trains(self) -> bool:
        """Whether the model was exported with this batch norm in training mode."""
        return self.args[5] is True and self.args[3] is not None


def hide(graph_module: GraphModule) -> list[HiddenBatchNorm]:
    """Turns every batch norm of the graph into a call of a module with the same inputs."""
    found = [node for node in graph_module.graph.nodes if node.target is aten.batch_norm.default]
    hidden = []
    for index, node in enumerate(found):
        _, _, _, _, _, _, momentum, eps, *_ = args = tuple(node.args)
        module = BatchNorm(momentum, eps)
        name = f"{_PREFIX}_{index}"
        graph_module.add_submodule(name, module)
        node.op, node.target, node.args = "call_module", name, args[:5]
        hidden.append(HiddenBatchNorm(node, args, module))
    return hidden


def reveal(graph_module: GraphModule, hidden: Iterable[HiddenBatchNorm]) -> None:
    """Undoes `hide`."""
    for batch_norm in hidden:
        node = batch_norm.node
        graph_module.delete_submodule(str(node.target))
        node.op, node.target = "call_function", aten.batch_norm.default
        node.args = batch_norm.args
