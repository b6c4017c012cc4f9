"""Rounds the constants that stay in floating point to float16, the precision in which Core ML stores them.

A Core ML program keeps biases, norm weights and scalar factors in float16. The difference to float32 is tiny, but in a
quantized model it decides to which of two steps a value near their boundary goes, and after a few layers the device
and the graph that was evaluated in PyTorch no longer agree in their last bits. With the constants rounded in the graph
too, both compute with the same numbers: the converted graph predicts the device, and the cost is below 2**-11 relative.
"""

from collections.abc import Iterable, Mapping
from operator import attrgetter
from types import MappingProxyType

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import Argument

from coreml_quantizer.rules import rules
from coreml_quantizer.values import is_float

aten = torch.ops.aten

_LARGEST_CHANGE = 2.0**-10
"""Constants that float16 cannot hold this closely, relative to their largest element, stay as they are: a tiny eps.
So do single elements beyond the range of float16, such as masks near finfo.min."""

_SCALAR_ARGUMENTS: Mapping[torch._ops.OpOverloadPacket, tuple[int | str, ...]] = MappingProxyType(
    {
        **dict.fromkeys((aten.add, aten.add_, aten.sub, aten.sub_, aten.rsub), (0, 1)),
        **dict.fromkeys((aten.mul, aten.mul_), (0, 1)),
        aten.scaled_dot_product_attention: ("scale",),
    }
)
"""Operators whose scalar operands become float16 constants of the program, and where those stand."""

_DIVISIONS: Mapping[torch._ops.OpOverload, torch._ops.OpOverload] = MappingProxyType(
    {aten.div.Tensor: aten.mul.Tensor, aten.div_.Tensor: aten.mul_.Tensor}
)
"""Division by a scalar, and the product with its reciprocal that Core ML Tools (divide_to_multiply) makes of it."""

_EPSILONS: Mapping[torch._ops.OpOverloadPacket, int] = MappingProxyType(
    {aten.layer_norm: 4, aten.rms_norm: 3, aten.group_norm: 4, aten.batch_norm: 7, aten.instance_norm: 7}
)
"""Norms, and where their eps stands. Core ML Tools stores an eps below float16 as the smallest float16 number."""

_SMALLEST_HALF = 2.0**-24

_BIAS_POSITION = 2
"""Where every convolution and linear layer takes its bias. A bias is added to values of ordinary size, so what float16
flushes to zero (below 2**-25) is negligible there however small the whole bias is."""


def round_constants_to_half(graph_module: GraphModule, quantized_weights: Iterable[tuple[Node, Node]]) -> None:
    """Rounds float32 constants of `graph_module` that are read outside of quantized weights, in place.

    Tensors are replaced, not written to: an exported graph shares its parameters with the model it came from.

    Args:
        graph_module: An exported graph whose batch norms are folded.
        quantized_weights: Edges (constant, consumer) on which a constant is quantized.
    """
    quantized: dict[Node, set[Node]] = {}
    for constant, consumer in quantized_weights:
        quantized.setdefault(constant, set()).add(consumer)
    replaced: dict[int, torch.Tensor] = {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and not set(node.users) <= quantized.get(node, set()):
            is_bias = all(_takes_as_bias(user, node) for user in node.users)
            _round_tensor(graph_module, str(node.target), replaced, negligible=is_bias)
        elif node.op == "call_function" and is_float(node):
            _multiply_by_reciprocal(node)
            _round_scalars(node)


def _takes_as_bias(user: Node, constant: Node) -> bool:
    rule = rules.lookup(user)
    has_weight = rule is not None and rule.weight is not None
    return has_weight and len(user.args) > _BIAS_POSITION and user.args[_BIAS_POSITION] is constant


def _round_tensor(graph_module: GraphModule, target: str, replaced: dict[int, torch.Tensor], negligible: bool) -> None:
    path, _, name = target.rpartition(".")
    owner = graph_module.get_submodule(path)
    value: object = attrgetter(name)(owner)
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        return
    if id(value) not in replaced:
        rounded = _rounded(value.detach(), negligible)
        is_parameter = isinstance(value, torch.nn.Parameter)
        replaced[id(value)] = torch.nn.Parameter(rounded, value.requires_grad) if is_parameter else rounded
    # Tied parameters stay tied: one replacement for one tensor.
    if not torch.equal(replaced[id(value)], value):
        setattr(owner, name, replaced[id(value)])


def _multiply_by_reciprocal(node: Node) -> None:
    product = _DIVISIONS.get(node.target) if isinstance(node.target, torch._ops.OpOverload) else None
    divisor = node.args[1] if len(node.args) > 1 else None
    dividend = node.args[0]
    if product is None or not isinstance(dividend, Node) or not is_float(dividend):
        return
    if isinstance(divisor, int | float) and divisor != 0:
        node.target = product
        node.update_arg(1, 1.0 / divisor)


def _round_scalars(node: Node) -> None:
    packet = getattr(node.target, "overloadpacket", None)
    if packet is None:
        return
    epsilon = _EPSILONS.get(packet)
    if epsilon is not None and len(node.args) > epsilon and isinstance(node.args[epsilon], float):
        node.update_arg(epsilon, max(float(torch.tensor(node.args[epsilon]).half()), _SMALLEST_HALF))
    for key in _SCALAR_ARGUMENTS.get(packet, ()):
        if isinstance(key, str):
            if isinstance(node.kwargs.get(key), float):
                node.update_kwarg(key, _rounded_scalar(node.kwargs[key]))
        elif len(node.args) > key and isinstance(node.args[key], float):
            node.update_arg(key, _rounded_scalar(node.args[key]))


def _rounded_scalar(value: Argument) -> float:
    assert isinstance(value, float)
    return float(_rounded(torch.tensor(value, dtype=torch.float64)))


def _rounded(value: torch.Tensor, negligible: bool = False) -> torch.Tensor:
    half = value.to(torch.float16).to(value.dtype)
    half = torch.where(torch.isfinite(half), half, value)
    if negligible or value.numel() == 0:
        return half
    return half if (half - value).abs().max() <= _LARGEST_CHANGE * half.abs().max() else value
