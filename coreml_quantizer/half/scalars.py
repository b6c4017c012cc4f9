"""Rounding of the scalar operands of a graph to float16, as `half.constants` rounds its tensors."""

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch.fx import Node
from torch.fx.node import Argument

from coreml_quantizer.graph.nodes import packet_of
from coreml_quantizer.graph.values import is_float
from coreml_quantizer.half.rounding import SMALLEST_HALF

aten = torch.ops.aten

_SCALAR_ARGUMENTS: Mapping[object, tuple[int | str, ...]] = MappingProxyType(
    {
        **dict.fromkeys((aten.add, aten.add_, aten.sub, aten.sub_, aten.rsub), (0, 1)),
        **dict.fromkeys((aten.mul, aten.mul_), (0, 1)),
        aten.scaled_dot_product_attention: ("scale",),
    }
)
"""Operators whose scalar operands become float16 constants of the program -> positions or names of these operands."""

PRODUCTS: Mapping[object, torch._ops.OpOverload] = MappingProxyType(
    {aten.div.Tensor: aten.mul.Tensor, aten.div_.Tensor: aten.mul_.Tensor}
)
"""Division -> the multiplication by the reciprocal that Core ML Tools (divide_to_multiply) makes of it."""

_EPSILONS: Mapping[object, int] = MappingProxyType(
    {aten.layer_norm: 4, aten.rms_norm: 3, aten.group_norm: 4, aten.batch_norm: 7, aten.instance_norm: 7}
)
"""Norms -> the position of their eps. Core ML Tools stores an eps below float16 as the smallest float16 number."""


def round_scalars_to_half(node: Node) -> None:
    """Rounds the scalar operands of one call that makes a float tensor, in place.

    A division by a scalar becomes a multiplication by the reciprocal, which is what the program computes. Attention
    without an explicit scale gets the usual one as an argument, for the same reason.
    """
    _multiply_by_reciprocal(node)
    _name_scale(node)
    _round_scalars(node)


def _multiply_by_reciprocal(node: Node) -> None:
    product = PRODUCTS.get(node.target)
    divisor = node.args[1] if len(node.args) > 1 else None
    dividend = node.args[0] if node.args else None
    if product is None or not isinstance(dividend, Node) or not is_float(dividend):
        return
    if isinstance(divisor, int | float) and divisor != 0:
        node.target = product
        node.update_arg(1, 1.0 / divisor)


def _name_scale(node: Node) -> None:
    if packet_of(node) is not aten.scaled_dot_product_attention:
        return
    query = node.args[0]
    value = query.meta.get("val") if isinstance(query, Node) else None
    if node.kwargs.get("scale") is None and isinstance(value, torch.Tensor) and isinstance(value.shape[-1], int):
        node.update_kwarg("scale", 1.0 / math.sqrt(value.shape[-1]))


def _round_scalars(node: Node) -> None:
    packet = packet_of(node)
    epsilon = _EPSILONS.get(packet)
    if epsilon is not None:
        _round_epsilon(node, epsilon)
    for key in _SCALAR_ARGUMENTS.get(packet, ()):
        if isinstance(key, str):
            if isinstance(node.kwargs.get(key), float):
                node.update_kwarg(key, _rounded_scalar(node.kwargs[key]))
        elif len(node.args) > key and isinstance(node.args[key], float):
            node.update_arg(key, _rounded_scalar(node.args[key]))


def _round_epsilon(node: Node, position: int) -> None:
    """Rounds an eps, also if it is the operator's default."""
    parameters = node.target._schema.arguments  # type: ignore[union-attr]
    if len(parameters) <= position or parameters[position].name in node.kwargs:
        return
    given = (*node.args, *(parameter.default_value for parameter in parameters[len(node.args) : position + 1]))
    epsilon = given[position]
    if isinstance(epsilon, float):
        node.args = (
            *given[:position],
            max(float(torch.tensor(epsilon).half()), SMALLEST_HALF),
            *given[position + 1 :],
        )


def _rounded_scalar(value: Argument) -> float:
    """Returns `value` as the float16 number, possibly subnormal, that the program stores; itself if there is none."""
    assert isinstance(value, float)
    half = float(torch.tensor(value, dtype=torch.float64).half())
    return half if half != 0 and math.isfinite(half) else value
