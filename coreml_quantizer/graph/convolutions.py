"""Operators of convolutions and linear layers: the output-channel axis of their weights, and their groups."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch.fx import Node

aten = torch.ops.aten

CONVOLUTIONS: Mapping[Any, int] = MappingProxyType(
    {
        aten.conv1d.default: 0,
        aten.conv1d.padding: 0,
        aten.conv2d.default: 0,
        aten.conv2d.padding: 0,
        aten.conv3d.default: 0,
        aten.conv3d.padding: 0,
        aten.conv_transpose1d.default: 1,
        aten.conv_transpose2d.input: 1,
        aten.conv_transpose3d.input: 1,
    }
)
"""Convolutions -> the axis of the output channels of their weight."""

LAYERS: Mapping[Any, int] = MappingProxyType({**CONVOLUTIONS, aten.linear.default: 0})
"""Operators that can absorb the batch norm after them -> the axis of the output channels of their weight."""

_TRANSPOSED_GROUPS = 6


def transposed_groups(node: Node) -> int:
    """Returns the number of groups of a transposed convolution.

    The output channels of its weight lie on two axes: axis 0 holds the groups, axis 1 the channels of a group. Every
    other layer has all of its output channels on one axis, and counts as one group.
    """
    if CONVOLUTIONS.get(node.target) != 1 or len(node.args) <= _TRANSPOSED_GROUPS:
        return 1
    groups: Any = node.args[_TRANSPOSED_GROUPS]
    return int(groups)
