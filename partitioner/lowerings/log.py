"""Logarithms without an epsilon, logarithms of softmaxes, and ``expm1``.

By default Core ML's `log` adds 1e-45 to its argument, so the logarithm of zero would be -103 instead of -infinity. Core
ML Tools converts the logarithm of a softmax to a softmax and a logarithm. In float16 everything below e^-17 rounds to
zero, so an element that is 17 below the largest one gets the logarithm of zero.
"""

import math
from typing import Any

from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil import types

from partitioner.lowerings.registry import Converter, set_converter


def _as_float(x: Any) -> Any:
    return x if types.is_float(x.dtype) else mb.cast(x=x, dtype="fp32")


@set_converter("log")
def _log(context: Any, node: Any) -> None:
    x = _as_float(_get_inputs(context, node, expected=1)[0])
    context.add(mb.log(x=x, epsilon=0.0, name=node.name))


def _to_base(base: float) -> Converter:
    def convert(context: Any, node: Any) -> None:
        x = _as_float(_get_inputs(context, node, expected=1)[0])
        context.add(mb.mul(x=mb.log(x=x, epsilon=0.0), y=1 / math.log(base), name=node.name))

    return convert


set_converter("log2")(_to_base(2))
set_converter("log10")(_to_base(10))


@set_converter("log_softmax", "_log_softmax")
def _log_softmax(context: Any, node: Any) -> None:
    x, dim = _get_inputs(context, node, min_expected=2)[:2]
    axes = [int(dim.val)]
    x = _as_float(x)
    below = mb.sub(x=x, y=mb.reduce_max(x=x, axes=axes, keep_dims=True))
    total = mb.reduce_sum(x=mb.exp(x=below), axes=axes, keep_dims=True)
    context.add(mb.sub(x=below, y=mb.log(x=total, epsilon=0.0), name=node.name))


@set_converter("expm1")
def _expm1(context: Any, node: Any) -> None:
    """Computes ``tanh(x / 2) * (exp(x) + 1)``, in which nothing cancels for a small x."""
    x = _as_float(_get_inputs(context, node, expected=1)[0])
    half = mb.tanh(x=mb.mul(x=x, y=0.5))
    context.add(mb.mul(x=half, y=mb.add(x=mb.exp(x=x), y=1.0), name=node.name))
