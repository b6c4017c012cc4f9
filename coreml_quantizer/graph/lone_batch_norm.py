"""Rewriting of batch norms that fold into no layer: each becomes a multiplication and an addition.

In eval mode a batch norm is an affine map with constants. Written as a multiplication and an addition, it is quantized
as one block with the activation after it. torchao's conversion then does not mistake it for a batch norm of
quantization-aware training, for which it would trace 96 patterns (10 s to 30 s).
"""

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from coreml_quantizer.graph.values import evaluate, find_constants, find_written_values

aten = torch.ops.aten

_WEIGHT, _BIAS, _MEAN, _VARIANCE, _TRAINING, _EPS = 1, 2, 3, 4, 5, 7
_FOLDED_BY_TORCHAO = frozenset(
    {
        aten.conv1d.default,
        aten.conv1d.padding,
        aten.conv2d.default,
        aten.conv2d.padding,
        aten.conv_transpose1d.default,
        aten.conv_transpose2d.input,
        aten.linear.default,
    }
)
_PREFIX = "lone_batch_norm"


def rewrite_lone_batch_norms(graph_module: GraphModule) -> None:
    """Rewrites the batch norms of an exported graph that are in eval mode, in place; recompile the graph to run it.

    A batch norm stays if it trains, or if the model computes or writes its statistics or parameters.

    Args:
        graph_module: An exported graph in which convolutions have absorbed their batch norms.
    """
    found = [node for node in graph_module.graph.nodes if node.target is aten.batch_norm.default]
    if not found:
        return
    nodes = list(graph_module.graph.nodes)
    constants = find_constants(nodes, find_written_values(nodes))
    lone = [node for node in found if is_affine(node, constants) and not _torchao_folds(node)]
    for index, node in enumerate(lone):
        _rewrite(graph_module, node, f"{_PREFIX}_{index}")


def is_affine(node: Node, constants: Container[Node]) -> bool:
    """Returns whether a batch norm is in eval mode, with statistics and parameters that are constants."""
    parameters = [node.args[index] for index in (_WEIGHT, _BIAS, _MEAN, _VARIANCE)]
    has_statistics = isinstance(node.args[_MEAN], Node) and isinstance(node.args[_VARIANCE], Node)
    fixed = all(found is None or found in constants for found in parameters)
    return node.args[_TRAINING] is False and has_statistics and fixed


def _torchao_folds(node: Node) -> bool:
    """Returns whether torchao folds a batch norm into the layer before it.

    Before calibration, torchao has folded these already: one that is still there is going to be trained.
    """
    layer = node.args[0]
    if not isinstance(layer, Node):
        return True
    # A linear layer has its channels on the last axis, a batch norm on axis 1.
    misaligned = layer.target is aten.linear.default and layer.meta["val"].ndim > 2
    return layer.target in _FOLDED_BY_TORCHAO and len(layer.users) == 1 and not misaligned


@dataclass(frozen=True)
class _Affine:
    """The affine map `x * scale + shift`.

    Both constants have shape (channels, 1, ...), so that they broadcast over (batch, channels, ...).
    """

    scale: Tensor
    shift: Tensor


def scale_and_shift(graph_module: GraphModule, node: Node) -> tuple[Tensor, Tensor]:
    """Returns the factor and the addend of a batch norm with constants, both float64, shape (channels,)."""

    def constant(index: int, default: float, like: Tensor | None = None) -> Tensor:
        source = node.args[index]
        if isinstance(source, Node):
            value: Tensor = evaluate(source, graph_module)
            return value.detach().double()
        assert like is not None
        return torch.full_like(like, default)

    mean = constant(_MEAN, 0.0)
    eps: Any = node.args[_EPS]
    scale = constant(_WEIGHT, 1.0, mean) / torch.sqrt(constant(_VARIANCE, 1.0) + eps)
    return scale, constant(_BIAS, 0.0, mean) - mean * scale


def _affine_of(graph_module: GraphModule, node: Node, rank: int, dtype: torch.dtype) -> _Affine:
    """Returns the affine map of a batch norm; its constants are computed in float64, so they are rounded only once."""
    scale, shift = scale_and_shift(graph_module, node)
    shape = (-1, *(1 for _ in range(rank - 2)))
    return _Affine(scale.to(dtype).reshape(shape), shift.to(dtype).reshape(shape))


def _rewrite(graph_module: GraphModule, node: Node, name: str) -> None:
    value = node.meta["val"]
    affine = _affine_of(graph_module, node, value.ndim, value.dtype)
    fake = value.new_empty(affine.scale.shape)
    graph = graph_module.graph
    with graph.inserting_before(node):
        scale = _constant(graph_module, f"{name}_scale", affine.scale, fake)
        shift = _constant(graph_module, f"{name}_shift", affine.shift, fake)
        product = graph.call_function(aten.mul.Tensor, (node.args[0], scale))
        result = graph.call_function(aten.add.Tensor, (product, shift))
    for made in (product, result):
        made.meta = dict(node.meta)
    node.replace_all_uses_with(result)
    parameters = node.all_input_nodes[1:]
    graph.erase_node(node)
    for parameter in parameters:
        if parameter.op == "get_attr" and not parameter.users:
            graph.erase_node(parameter)


def _constant(graph_module: GraphModule, name: str, tensor: Tensor, fake: Tensor) -> Node:
    graph_module.register_buffer(name, tensor)
    node = graph_module.graph.get_attr(name)
    node.meta["val"] = fake
    return node
