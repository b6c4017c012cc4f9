"""``rsqrt`` and ``reciprocal`` without the epsilon that Core ML adds to their argument by default.

Core ML Tools leaves the default on for both. `inverse` computes 1 / (x + 1e-4). `rsqrt` adds 1e-12, which in float16
becomes 6e-8, the smallest number: half of the mean square that small activations of an RMS norm have.
"""

from typing import Any

from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil import types

from partitioner.lowerings.registry import set_converter


@set_converter("rsqrt")
def _rsqrt(context: Any, node: Any) -> None:
    context.add(mb.rsqrt(x=_float_input(context, node), epsilon=0.0, name=node.name))


@set_converter("reciprocal")
def _reciprocal(context: Any, node: Any) -> None:
    context.add(mb.inverse(x=_float_input(context, node), epsilon=0.0, name=node.name))


def _float_input(context: Any, node: Any) -> Any:
    (x,) = _get_inputs(context, node, expected=1)
    return x if types.is_float(x.dtype) else mb.cast(x=x, dtype="fp32")
