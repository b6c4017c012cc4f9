"""Folding of batch norms into the convolutions and linear layers before them, in time linear in the number of nodes.

torchao's `prepare_pt2e` folds them too, before it calls any quantizer. But it walks over the whole graph after each
pair. It also folds into a layer whose output is read by other nodes, which then get wrong values.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from coreml_quantizer.graph.convolutions import LAYERS, transposed_groups
from coreml_quantizer.graph.lone_batch_norm import is_affine, rewrite_lone_batch_norms, scale_and_shift
from coreml_quantizer.graph.values import constant_of, find_constants, find_written_values
from coreml_quantizer.process.gc_pause import postpone_collection

aten = torch.ops.aten

_WEIGHT, _BIAS, _MEAN = 1, 2, 3


def fold_batch_norms(graph_module: GraphModule) -> GraphModule:
    """Folds the batch norms of an exported graph in eval mode into the layers before them.

    Call it before `prepare_pt2e` for very deep models, and for models in which other nodes besides the batch norm read
    the output of its convolution. Batch norms that no layer can absorb become a multiplication and an addition. Do not
    call it before `prepare_qat_pt2e`: there batch norms are trained.

    Example:
        >>> prepared = prepare_pt2e(fold_batch_norms(exported.module()), CoreMLQuantizer())

    Args:
        graph_module: The graph that `torch.export.export(...).module()` returned, changed in place.

    Returns:
        The same graph.
    """
    nodes = list(graph_module.graph.nodes)
    postpone_collection(len(nodes))
    constants = find_constants(nodes, find_written_values(nodes))
    uses = Counter(str(node.target) for node in nodes if node.op == "get_attr" for _ in node.users)
    for node in nodes:
        if node.target is aten.batch_norm.default and is_affine(node, constants):
            layer = node.args[0]
            assert isinstance(layer, Node)
            if _absorbs(layer, constants):
                _fold(graph_module, layer, node, uses)
    rewrite_lone_batch_norms(graph_module)
    graph_module.recompile()
    return graph_module


def _absorbs(layer: Node, constants: set[Node]) -> bool:
    if len(layer.users) != 1 or layer.target not in LAYERS:
        return False
    # A batch norm has its channels on axis 1, a linear layer on the last.
    if layer.target is aten.linear.default and layer.meta["val"].ndim != 2:
        return False
    weight, bias = layer.args[_WEIGHT], layer.args[_BIAS] if len(layer.args) > _BIAS else None
    return weight in constants and (bias is None or bias in constants)


def _fold(graph_module: GraphModule, layer: Node, batch_norm: Node, uses: Counter[str]) -> None:
    scale, shift = scale_and_shift(graph_module, batch_norm)
    weight_node = layer.args[_WEIGHT]
    assert isinstance(weight_node, Node)
    weight = constant_of(graph_module, weight_node)
    assert weight is not None
    given = constant_of(graph_module, layer.args[_BIAS]) if len(layer.args) > _BIAS else None
    bias = shift if given is None else given.double() * scale + shift
    is_stored = weight_node.op == "get_attr"
    name = str(weight_node.target) if is_stored else f"_{weight_node.name}"
    if not is_stored or uses[name] > 1:
        uses[name] -= 1
        name = f"{name}_before_{batch_norm.name}"
    replaced = [*layer.all_input_nodes, *batch_norm.all_input_nodes]
    with layer.graph.inserting_before(layer):
        made = (
            _constant(graph_module, name, (weight.double() * _along_outputs(scale, weight, layer)).to(weight.dtype)),
            _constant(graph_module, f"{name}_bias", bias.to(weight.dtype)),
        )
    for node, alike, value in zip(made, (weight_node, batch_norm.args[_MEAN]), (weight, bias), strict=True):
        node.meta["val"] = _example(alike, value, layer)
    layer.args = (layer.args[0], *made, *layer.args[_BIAS + 1 :])
    batch_norm.replace_all_uses_with(layer)
    layer.graph.erase_node(batch_norm)
    for node in _unread_constants(replaced):
        layer.graph.erase_node(node)


def _example(alike: Any, value: Tensor, layer: Node) -> Tensor:
    """Returns an example value for a constant: that of `alike` if it fits, because making a new one takes longer."""
    known = alike.meta.get("val")
    if isinstance(known, Tensor) and known.shape == value.shape and known.dtype == layer.meta["val"].dtype:
        return known
    made: Tensor = layer.meta["val"].new_empty(value.shape)
    return made


def _along_outputs(scale: Tensor, weight: Tensor, layer: Node) -> Tensor:
    """Returns `scale`, one number for each output channel, in a shape that multiplies `weight`."""
    rest = (1,) * (weight.ndim - 2)
    if LAYERS[layer.target] == 0:
        return scale.reshape(-1, 1, *rest)
    groups = transposed_groups(layer)
    return scale.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0).reshape(*weight.shape[:2], *rest)


def _constant(graph_module: GraphModule, path: str, value: Tensor) -> Node:
    module, _, name = path.rpartition(".")
    parent = graph_module.get_submodule(module)
    parent.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return graph_module.graph.get_attr(path)


def _unread_constants(nodes: list[Node]) -> Iterator[Node]:
    for node in dict.fromkeys(nodes):
        if node.op == "get_attr" and not node.users:
            yield node
