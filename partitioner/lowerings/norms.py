"""RMS norm and instance norm, which the converters of Core ML Tools convert wrongly.

RMS norm: Core ML Tools divides the input by its largest magnitude, so that the squares fit into float16. Then it adds
the unscaled ``eps`` to the mean square of the scaled input. So small inputs come out too large, and a row of zeros
becomes NaN. Here ``eps`` is scaled as well, and the divisor is at least the square root of ``eps``.

Instance norm: Core ML Tools uses the statistics of the input even if the program asks for the running statistics.
"""

import math
from typing import Any

from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

from partitioner.lowerings.registry import get_converter, set_converter

_stock = get_converter("instance_norm")


@set_converter("rms_norm")
def _rms_norm(context: Any, node: Any) -> None:
    x, shape, weight, eps = _get_inputs(context, node, expected=4)
    axes = list(range(-len(shape.val), 0))
    root = math.sqrt(eps.val)
    largest = mb.maximum(x=mb.reduce_max(x=mb.abs(x=x), axes=axes, keep_dims=True), y=root)
    scaled = mb.real_div(x=x, y=largest)
    mean = mb.reduce_mean(x=mb.square(x=scaled), axes=axes, keep_dims=True)
    # At most 1, and 0 where the input is so large that eps does not matter.
    scaled_eps = mb.square(x=mb.real_div(x=root, y=largest))
    normalized = mb.mul(x=scaled, y=mb.rsqrt(x=mb.add(x=mean, y=scaled_eps), epsilon=0.0))
    context.add(normalized if weight is None else mb.mul(x=normalized, y=weight), node.name)


@set_converter("instance_norm")
def _instance_norm(context: Any, node: Any) -> None:
    x, weight, bias, mean, variance, use_input_stats, _, eps, _ = _get_inputs(context, node, expected=9)
    if use_input_stats.val:
        _stock(context, node)
        return
    context.add(mb.batch_norm(x=x, mean=mean, variance=variance, gamma=weight, beta=bias, epsilon=eps, name=node.name))
