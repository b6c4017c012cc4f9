"""Rounds the constants that stay in floating point to float16, the precision in which Core ML stores them.

A Core ML program keeps biases, norm weights and scalar factors in float16. The difference to float32 is tiny, but in a
quantized model it decides to which of two steps a value near their boundary goes, and after a few layers the device
and the graph that was evaluated in PyTorch no longer agree in their last bits. With the constants rounded in the graph
too, both compute with the same numbers: the converted graph predicts the device, and the cost is below 2**-11 relative.
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
"""Where every convolution and linear layer takes its bias. A bias is added to values of ordinary size, so what float16
flushes to zero (below 2**-25) is negligible there however small the whole bias is."""


def round_constants_to_half(
    graph_module: GraphModule, quantized_weights: Iterable[tuple[Node, Node]], rules: RuleTable
) -> None:
    """Rounds float32 constants of `graph_module` that are read outside of quantized weights, in place.

    What a quantized weight is computed from keeps its precision too.

    Tensors are replaced, not written to: an exported graph shares its parameters with the model it came from.

    Args:
        graph_module: An exported graph whose batch norms are folded.
        quantized_weights: Edges (constant, consumer) on which a constant is quantized.
        rules: The table that says which operators have a weight, and so a bias.
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
    """Holds the original too, so that its id is not given to another tensor."""

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
