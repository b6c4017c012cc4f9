"""Values that name positions or angles: coordinates of pixels and boxes, arguments of sines, running sums.

Eight bits divide the range of a value by 255. For a position in an image of 1000 pixels, one step is then four pixels.
So these values stay in floating point, back to the layer with weights, or the input, that they are computed from.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.fx import Node

from coreml_quantizer.graph.nodes import packet_of

aten = torch.ops.aten

_READERS: Mapping[object, tuple[int, ...]] = MappingProxyType(
    {
        aten.grid_sampler: (1,),
        aten.grid_sampler_2d: (1,),
        aten.grid_sampler_3d: (1,),
        aten.affine_grid_generator: (0,),
        **dict.fromkeys((aten.sin, aten.cos, aten.tan, aten.sinc, aten.polar), (0, 1)),
        **dict.fromkeys((aten.atan2, aten.arctan2), (0, 1)),
        **dict.fromkeys((aten.cumsum, aten.cumprod, aten.logcumsumexp), (0,)),
        **dict.fromkeys((aten.logit, aten.special_logit, aten.log1p, aten.erfinv, aten.acos, aten.asin), (0,)),
        **dict.fromkeys((aten.searchsorted, aten.bucketize), (0, 1)),
    }
)
"""Operators that read positions, angles, or probabilities near 0 and 1, and summands of many -> the operands."""

_PASSING = frozenset(
    {
        aten.add, aten.sub, aten.rsub, aten.mul, aten.div, aten.neg, aten.abs, aten.clamp, aten.clamp_min,
        aten.clamp_max, aten.maximum, aten.minimum, aten.where, aten.masked_fill, aten.relu, aten.tanh, aten.sigmoid,
        aten.hardtanh, aten.hardsigmoid, aten.softplus, aten.addcmul, aten.lerp, aten.matmul, aten.bmm, aten.mm,
        aten.sum, aten.exp, aten.affine_grid_generator,
    }
)  # fmt: skip
"""Operators without weights from whose operands positions are computed."""

_FEWEST = 4
"""The number of evenly spaced numbers from which on they count as a grid of positions."""

_SAMPLE = 512
_TOLERANCE = 1e-3

POSITION = "it is a position, an angle or a running sum, of which eight bits keep too few digits"


def find_positions(
    nodes: Iterable[Node], passes: Callable[[Node], bool], constant: Callable[[Node], Tensor | None]
) -> frozenset[Node]:
    """Returns the nodes whose values are positions, or that positions are computed from.

    Args:
        nodes: All nodes of one graph.
        passes: Returns whether the operator of a node copies or averages the values that it reads.
        constant: Returns the value of a constant node, None for any other node.
    """
    found: set[Node] = set()
    for node in nodes:
        if node.op != "call_function":
            continue
        read = [node.args[index] for index in _READERS.get(packet_of(node), ()) if index < len(node.args)]
        stack = [node] if packet_of(node) in (aten.add, aten.sub) and _adds_to_grid(node, constant) else read
        while stack:
            value = stack.pop()
            if not isinstance(value, Node) or value in found:
                continue
            found.add(value)
            if packet_of(value) in _PASSING or passes(value):
                stack.extend(value.all_input_nodes)
    return frozenset(found)


def _adds_to_grid(node: Node, constant: Callable[[Node], Tensor | None]) -> bool:
    """Returns whether one operand is a constant grid of positions, such as that of the anchors of a detector."""
    values = [constant(source) for source in node.all_input_nodes]
    return len(values) > 1 and sum(value is not None and _is_grid(value) for value in values) == 1


def _is_grid(value: Tensor) -> bool:
    """Returns whether the numbers of a tensor are evenly spaced. A sample rules out nearly all other tensors."""
    if not value.is_floating_point() or value.numel() < _FEWEST:
        return False
    sample = torch.unique(value.flatten()[:_SAMPLE].double()).diff()
    if len(sample) > 1:
        multiples = sample / sample.min()
        if bool(((multiples - multiples.round()).abs() > _TOLERANCE * multiples).any()):
            return False
    steps = torch.unique(value.double()).diff()
    return len(steps) >= _FEWEST - 1 and bool(((steps - steps[0]).abs() <= _TOLERANCE * steps[0]).all())
