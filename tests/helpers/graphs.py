"""Reads what a quantizer placed: helpers shared by the placement tests."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import CoreMLQuantizer

QDQ = torch.ops.quantized_decomposed
SYMMETRIC = {"global_config": {}}
"""What a LinearQuantizerConfig says when nothing is set."""
WEIGHT_ONLY = {"global_config": {"activation_dtype": "float32"}}
IMAGE = (torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8),)
ROWS = (torch.linspace(-1, 1, 4 * 6).reshape(4, 6),)
"""Inputs with values of both signs, spread evenly."""


def prepare(model: nn.Module, inputs: tuple[Tensor, ...], config: object = None, strict: bool = False) -> GraphModule:
    exported = torch.export.export(model.eval(), inputs, strict=strict).module()
    return prepare_pt2e(exported, CoreMLQuantizer(SYMMETRIC if config is None else config))


def quantize(model: nn.Module, inputs: tuple[Tensor, ...], config: object = None, strict: bool = False) -> GraphModule:
    """Prepares, calibrates on the example inputs, and converts."""
    prepared = prepare(model, inputs, config, strict)
    prepared(*inputs)
    return convert_pt2e(prepared)


def calls(graph_module: GraphModule, op: Any) -> list[Node]:
    """Nodes that call an operator given as packet or overload."""
    return [n for n in graph_module.graph.nodes if n.target is op or getattr(n.target, "overloadpacket", None) is op]


def call(graph_module: GraphModule, op: Any) -> Node:
    (node,) = calls(graph_module, op)
    return node


def is_dequantized(node: Any) -> bool:
    return isinstance(node, Node) and getattr(node.target, "overloadpacket", None) in (
        QDQ.dequantize_per_tensor,
        QDQ.dequantize_per_channel,
    )


def input_qparams(node: Node, position: int = 0) -> tuple[float, int]:
    """Scale and zero point of what `node` reads there; fails when that is not dequantized."""
    source = node.args[position]
    assert is_dequantized(source), f"{node} reads {source}, which is not dequantized"
    return source.args[1], source.args[2]


def output_qparams(node: Node) -> tuple[float, int]:
    """Scale and zero point that the only quantize behind `node` writes; fails when there is none."""
    writers = [user for user in node.users if user.target is QDQ.quantize_per_tensor.default]
    assert len(writers) == 1 == len(node.users), f"{node} is read by {list(node.users)}"
    return writers[0].args[1], writers[0].args[2]


def is_float_output(node: Node) -> bool:
    return not any(user.target is QDQ.quantize_per_tensor.default for user in node.users)


def placements(graph_module: GraphModule) -> list[tuple[str, Sequence[bool]]]:
    """For every computing node, whether each operand is dequantized, and the output quantized: a comparable summary."""
    found = []
    for node in graph_module.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        if packet is None or packet in (QDQ.quantize_per_tensor, QDQ.dequantize_per_tensor):
            continue
        found.append((str(packet), [is_dequantized(arg) for arg in node.all_input_nodes] + [not is_float_output(node)]))
    return found
