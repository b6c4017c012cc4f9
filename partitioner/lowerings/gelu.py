"""GELU, exact or in its tanh approximation.

Exported programs ask for the approximation by keyword, but Core ML Tools reads only positional arguments. It would
compute the exact form, which differs by up to 5e-4.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

from partitioner.lowerings.arguments import argument
from partitioner.lowerings.registry import set_converter

_MODES: Mapping[str, str] = MappingProxyType({"none": "EXACT", "tanh": "TANH_APPROXIMATION"})


@set_converter("gelu")
def _gelu(context: Any, node: Any) -> None:
    approximate = argument(node, 1, "approximate", "none")
    x = _get_inputs(context, node, min_expected=1)[0]
    context.add(mb.gelu(x=x, mode=_MODES[approximate], name=node.name))
