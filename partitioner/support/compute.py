"""An estimate of what an operation computes, in multiplications or elements."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch.fx import Node

from partitioner.graph.nodes import op_name, tensor_of


def _shape(value: object) -> list[int]:
    tensor = tensor_of(value)
    sizes: list[Any] = [] if tensor is None else list(tensor.shape)
    return [size if isinstance(size, int) else 1 for size in sizes]


def _elements(node: Node) -> int:
    return math.prod(_shape(node))


def _convolution(node: Node) -> int:
    """Returns the multiplications of a convolution: each result is a sum over the weight of its channel."""
    weight = _shape(node.args[1])
    return _elements(node) * math.prod(weight[1:])


def _product(position: int) -> Callable[[Node], int]:
    """Returns the cost of a product whose results are sums over the last dimension of the operand at `position`."""
    return lambda node: _elements(node) * (_shape(node.args[position]) or [1])[-1]


def _attention(node: Node) -> int:
    """Returns the multiplications of two products: queries with keys, and weights with values."""
    query, key = _shape(node.args[0]), _shape(node.args[1])
    return 2 * math.prod(query) * key[-2] if len(key) > 1 else _elements(node)


_COSTS: Mapping[str, Callable[[Node], int]] = MappingProxyType(
    {
        **{f"aten.conv{n}d.{kind}": _convolution for n in (1, 2, 3) for kind in ("default", "padding")},
        **dict.fromkeys(("aten.convolution.default", "aten.conv_transpose1d.default"), _convolution),
        **{f"aten.conv_transpose{n}d.input": _convolution for n in (2, 3)},
        **{f"aten.{name}.default": _product(0) for name in ("linear", "mm", "bmm", "matmul")},
        **{f"aten.{name}.default": _product(1) for name in ("addmm", "baddbmm")},
        "aten.scaled_dot_product_attention.default": _attention,
    }
)


def cost(node: Node) -> int:
    """Returns the multiplications of a product or convolution, and the result's elements for everything else."""
    return _COSTS.get(op_name(node), _elements)(node)


def is_product(node: Node) -> bool:
    """Returns whether an operation multiplies matrices, convolves or attends."""
    return op_name(node) in _COSTS
