"""Norms of vectors by any power, and distances by them.

Core ML Tools raises the elements to the power as they are. In float16 the third power of 41 is infinite, and that of
0.003 is zero. Here they are divided by the largest magnitude first, or for a negative power by the smallest. Core ML
Tools also returns the norm of power 0, a count, as an integer.
"""

import math
from typing import Any

import numpy as np
from coremltools.converters.mil.frontend.torch.ops import _get_inputs, promote_input_dtypes
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

from partitioner.limits import LARGEST_HALF
from partitioner.lowerings.arguments import argument
from partitioner.lowerings.registry import Converter, get_converter, set_converter

_HAVE_OPERATIONS = (1, 2, math.inf, -math.inf)


def _norm(x: Any, power: float, axes: list[int], keeps: bool, name: str) -> Any:
    sizes = mb.abs(x=x)
    reduce = mb.reduce_max if power > 0 else mb.reduce_min
    largest = reduce(x=sizes, axes=axes, keep_dims=True)
    inside = mb.logical_and(x=mb.greater(x=largest, y=0.0), y=mb.less_equal(x=largest, y=LARGEST_HALF))
    unit = mb.select(cond=inside, a=largest, b=1.0)  # not for zero, infinity and what float16 does not hold
    raised = mb.pow(x=mb.real_div(x=sizes, y=unit), y=power)
    root = mb.pow(x=mb.reduce_sum(x=raised, axes=axes, keep_dims=True), y=1 / power)
    if keeps:
        return mb.mul(x=root, y=unit, name=name)
    return mb.squeeze(x=mb.mul(x=root, y=unit), axes=axes, name=name)


def _of_any_power(stock: Converter) -> Converter:
    def convert(context: Any, node: Any) -> None:
        x = _get_inputs(context, node, min_expected=1)[0]
        power = argument(node, 1, "ord", 2)
        dims = argument(node, 2, "dim")
        if not isinstance(power, (int, float)) or power in _HAVE_OPERATIONS or 0 < power < 1 or x.rank == 0:
            stock(context, node)
            return
        axes = [int(axis) % x.rank for axis in ([dims] if isinstance(dims, int) else dims or range(x.rank))]
        keeps = bool(argument(node, 3, "keepdim", False))
        if power == 0:
            count = mb.reduce_sum(x=mb.cast(x=mb.not_equal(x=x, y=0.0), dtype="int32"), axes=axes, keep_dims=keeps)
            context.add(mb.cast(x=count, dtype="fp32", name=node.name))
            return
        context.add(_norm(x, float(power), axes, keeps, node.name))

    return convert


set_converter("linalg_vector_norm")(_of_any_power(get_converter("linalg_vector_norm")))


@set_converter("pairwise_distance")
def _pairwise_distance(context: Any, node: Any) -> None:
    x, y = promote_input_dtypes(_get_inputs(context, node, min_expected=2)[:2])
    power, eps = float(argument(node, 2, "p", 2.0)), np.float32(argument(node, 3, "eps", 1e-6))
    keeps = bool(argument(node, 4, "keepdim", False))
    difference = mb.add(x=mb.sub(x=x, y=y), y=eps)
    if power == 2:
        context.add(mb.reduce_l2_norm(x=difference, axes=[-1], keep_dims=keeps, name=node.name))
    elif power == 1:
        context.add(mb.reduce_l1_norm(x=difference, axes=[-1], keep_dims=keeps, name=node.name))
    elif abs(power) == math.inf:
        reduce = mb.reduce_max if power > 0 else mb.reduce_min
        context.add(reduce(x=mb.abs(x=difference), axes=[-1], keep_dims=keeps, name=node.name))
    else:
        context.add(_norm(difference, power, [difference.rank - 1], keeps, node.name))
