"""Rounding of the constants that stay in floating point to float16, the precision in which Core ML stores them.

A Core ML program keeps biases, norm weights and scalar factors in float16. The difference to float32 is tiny. But in a
quantized model it decides to which of two steps a value near their boundary is rounded. After a few layers, the last
bits on the device and in PyTorch's graph no longer agree. With the constants rounded in the graph too, both compute
with the same numbers: the converted graph predicts the results of the device. The relative change of a constant is
below 2**-11.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch.fx import GraphModule, Node

from coreml_quantizer.graph.values import find_feeding, find_written_values, is_float
from coreml_quantizer.half.divisors import multiply_by_reciprocals
from coreml_quantizer.half.rounding import rounded_to_half
from coreml_quantizer.half.scalars import round_scalars_to_half
from coreml_quantizer.rules import RuleTable

_BIAS_POSITION = 2
"""Position of the bias among the arguments of every convolution and linear layer.

A bias is added to values of ordinary size. What float16 flushes to zero (below 2**-25) is therefore negligible, even if
the whole bias is small.
"""


def round_constants_to_half(
    graph_module: GraphModule, quantized_weights: Iterable[tuple[Node, Node]], rules: RuleTable
) -> None:
    """Rounds the float32 constants of `graph_module` in place, except those that are only read as quantized weights.

    Constants from which quantized weights are computed keep their precision too.

    Tensors are replaced, not written to: an exported graph shares its parameters with the model that was exported.

    Args:
        graph_module: An exported graph whose batch norms are folded.
        quantized_weights: Edges (constant, consumer) on which a constant is quantized.
        rules: The table that says which operators have a weight, and therefore a bias.
    """
    multiply_by_reciprocals(graph_module)
    quantized: dict[Node, set[Node]] = {}
    for constant, consumer in quantized_weights:
        quantized.setdefault(constant, set()).add(consumer)
    nodes = list(graph_module.graph.nodes)
    written = find_written_values(nodes)
    weights = {constant for constant, consumers in quantized.items() if set(constant.users) <= consumers}
    weights |= find_feeding(nodes, weights)
    replacements: dict[int, _Replacement] = {}
    for node in nodes:
        if node in weights or not node.users:
            continue
        if node.op == "call_function" and is_float(node):
            round_scalars_to_half(node)
        elif node.op == "get_attr" and node not in written:
            is_bias = all(_takes_as_bias(user, node, rules) for user in node.users)
            _round_tensor(graph_module, str(node.target), replacements, negligible=is_bias)
    _keep_ties(graph_module, replacements)


@dataclass(frozen=True)
class _Replacement:
    """A rounded constant, with its original so that no other tensor gets the id of the original."""

    original: torch.Tensor
    rounded: torch.Tensor


def _takes_as_bias(user: Node, constant: Node, rules: RuleTable) -> bool:
    rule = rules.lookup(user)
    has_weight = rule is not None and rule.weight is not None
    return has_weight and len(user.args) > _BIAS_POSITION and user.args[_BIAS_POSITION] is constant


def _round_tensor(
    graph_module: GraphModule, target: str, replacements: dict[int, _Replacement], negligible: bool
) -> None:
    path, _, name = target.rpartition(".")
    owner = graph_module.get_submodule(path)
    value: object = attrgetter(name)(owner)
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        return
    rounded = rounded_to_half(value.detach(), negligible)
    if torch.equal(rounded, value):
        return
    if isinstance(value, torch.nn.Parameter):
        rounded = torch.nn.Parameter(rounded, value.requires_grad)
    replacements[id(value)] = _Replacement(value, rounded)
    setattr(owner, name, rounded)


def _keep_ties(graph_module: GraphModule, replacements: dict[int, _Replacement]) -> None:
    """Gives every other name of a replaced parameter or buffer the replacement too."""
    if not replacements:
        return
    named = [
        *graph_module.named_parameters(remove_duplicate=False),
        *graph_module.named_buffers(remove_duplicate=False),
    ]
    for target, value in named:
        if id(value) in replacements:
            path, _, name = target.rpartition(".")
            setattr(graph_module.get_submodule(path), name, replacements[id(value)].rounded)
