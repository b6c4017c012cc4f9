"""Rewriting of divisions by constants to products with float16 reciprocals, as a Core ML program computes them.

Source: Core ML Tools pass divide_to_multiply, which runs before constants are cast to float16.
"""

import torch
from torch.fx import GraphModule, Node

from coreml_quantizer.graph.values import evaluate, find_constants, find_written_values, is_float
from coreml_quantizer.half.rounding import rounded_to_half
from coreml_quantizer.half.scalars import PRODUCTS

aten = torch.ops.aten

_LARGEST = 2**20
"""The most elements that a stored reciprocal may have."""

_PREFIX = "_reciprocal"


def multiply_by_reciprocals(graph_module: GraphModule) -> None:
    """Replaces divisions by constant tensors, such as the standard deviation of a model's inputs, in place.

    A divisor with a zero, or with reciprocals that float16 cannot hold, stays.
    """
    nodes = list(graph_module.graph.nodes)
    divisions = [node for node in nodes if node.target in PRODUCTS and is_float(node)]
    if not divisions:
        return
    constants = find_constants(nodes, find_written_values(nodes))
    for index, node in enumerate(divisions):
        dividend, divisor = node.args[:2]
        if isinstance(divisor, Node) and divisor in constants and dividend not in constants:
            _multiply(graph_module, node, divisor, f"{_PREFIX}_{index}")


def _multiply(graph_module: GraphModule, node: Node, divisor: Node, name: str) -> None:
    value = divisor.meta["val"]
    if value.dtype is not torch.float32 or value.numel() > _LARGEST:
        return
    exact = evaluate(divisor, graph_module).detach().double().reciprocal().float()
    rounded = rounded_to_half(exact)
    if rounded is exact or not torch.isfinite(rounded).all():
        return
    graph_module.register_buffer(name, rounded)
    with graph_module.graph.inserting_before(node):
        reciprocal = graph_module.graph.get_attr(name)
    reciprocal.meta["val"] = value
    node.target = PRODUCTS[node.target]
    node.update_arg(1, reciprocal)
