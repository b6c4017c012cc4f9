"""Divisions of tensors of different types, and of integers with rounding.

Core ML Tools makes the operand types equal for ``div`` but not for ``true_divide``. It divides integers as
floating-point numbers. But float16 has no number between 2048 and 2050, and indices into an image already get that
large.
"""

from typing import Any

from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil import types

from partitioner.lowerings.arguments import argument
from partitioner.lowerings.registry import Converter, get_converter, set_converter

_stock = get_converter("div")


def _truncated(x: Any, y: Any) -> Any:
    quotient = mb.floor_div(x=mb.abs(x=x), y=mb.abs(x=y))
    return mb.mul(x=quotient, y=mb.mul(x=mb.sign(x=x), y=mb.sign(x=y)))


def _of_integers(stock: Converter, rounding: str | None = None) -> Converter:
    def convert(context: Any, node: Any) -> None:
        mode = rounding or argument(node, 2, "rounding_mode")
        x, y = _get_inputs(context, node, min_expected=2)[:2]
        if mode is None or not (types.is_int(x.dtype) and types.is_int(y.dtype)):
            stock(context, node)
            return
        x, y = (mb.cast(x=value, dtype="int32") for value in (x, y))
        context.add(mb.floor_div(x=x, y=y) if mode == "floor" else _truncated(x, y), node.name)

    return convert


set_converter("div")(_of_integers(_stock))
set_converter("true_divide")(_stock)
set_converter("floor_divide", "floordiv")(_of_integers(get_converter("floor_divide"), "floor"))
