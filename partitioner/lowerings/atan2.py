"""The angle of a point (``atan2``).

Core ML Tools computes the arc tangent of ``y / x`` and adds 2e-8 to a small ``x``. Points on the negative x axis get 0
instead of pi, points near the y axis get an angle that is up to pi away, and in float16 the quotient overflows.
"""

import math
from typing import Any

from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil import types

from partitioner.lowerings.registry import set_converter

_SMALLEST = 2.0**-126
"""The smallest normal number of float32. In float16 it becomes the smallest number that there is."""


@set_converter("atan2")
def _atan2(context: Any, node: Any) -> None:
    inputs = _get_inputs(context, node, expected=2)
    y, x = (value if types.is_float(value.dtype) else mb.cast(x=value, dtype="fp32") for value in inputs)
    height, width = mb.abs(x=y), mb.abs(x=x)
    longer = mb.maximum(x=mb.maximum(x=height, y=width), y=_SMALLEST)
    # From 0 to pi / 4; the origin has the angle 0.
    angle = mb.atan(x=mb.real_div(x=mb.minimum(x=height, y=width), y=longer))
    angle = mb.select(cond=mb.greater(x=height, y=width), a=mb.sub(x=math.pi / 2, y=angle), b=angle)
    angle = mb.select(cond=mb.less(x=x, y=0.0), a=mb.sub(x=math.pi, y=angle), b=angle)
    context.add(mb.select(cond=mb.less(x=y, y=0.0), a=mb.mul(x=angle, y=-1.0), b=angle, name=node.name))
