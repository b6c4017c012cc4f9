"""Circular padding, padding by a negative amount, which crops, and padding by an amount that varies.

Core ML's pad has none of them. As in PyTorch, the input is cropped first, and only the rest wraps around.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil import types

from partitioner.lowerings.arguments import argument
from partitioner.lowerings.registry import get_converter, set_converter
from partitioner.lowerings.sizes import size_of

Amounts = list[tuple[int, int, int]]
"""Per axis: the axis, the number of elements added before, and the number added after. Negative numbers crop."""

_stock = get_converter("pad")


def _mode(node: Any) -> str:
    mode: str = "constant" if node.kind != "pad" else argument(node, 2, "mode", "constant")
    return mode


def _part(x: Any, axis: int, begin: int | None, end: int | None) -> Any:
    """Returns the elements of `x` from `begin` to `end` along an axis.

    Negative places count from the end of the axis, whatever its size is; None is its beginning or end.
    """
    axes = range(x.rank)
    return mb.slice_by_index(
        x=x,
        begin=[begin or 0 if index == axis else 0 for index in axes],
        end=[end or 0 if index == axis else 0 for index in axes],
        begin_mask=[index != axis or begin is None for index in axes],
        end_mask=[index != axis or end is None for index in axes],
    )


def _cropped(x: Any, amounts: Amounts) -> Any:
    for axis, before, after in amounts:
        if min(before, after) < 0:
            x = _part(x, axis, max(-before, 0), after if after < 0 else None)
    return x


def _wrapped(x: Any, amounts: Amounts) -> Any:
    for axis, before, after in amounts:
        left = [_part(x, axis, -before, None)] if before > 0 else []
        right = [_part(x, axis, 0, after)] if after > 0 else []
        x = mb.concat(values=[*left, x, *right], axis=axis) if left or right else x
    return x


def _varying(context: Any, node: Any, given: Sequence[Any]) -> None:
    """Pads by amounts that are known only when the program runs, negative ones too.

    Core ML's pad takes constant amounts only. Along each axis, the elements of the result are gathered instead.

    Raises:
        ValueError: The padding is circular.
    """
    if _mode(node) not in _SOURCES:
        raise ValueError(f"Core ML has no padding of mode {_mode(node)!r} by an amount that varies")
    x = context[node.inputs[0]]
    dtype, is_mask = types.builtin_to_string(x.dtype), types.is_bool(x.dtype)
    x = mb.cast(x=x, dtype="int32") if is_mask else x
    value = argument(node, 3 if node.kind == "pad" else 2, "value", 0) or 0
    for position in range(0, len(given), 2):
        before, after = (_amount(context, amount) for amount in given[position : position + 2])
        x = _padded(x, x.rank - 1 - position // 2, before, after, _mode(node), value)
    x = mb.cast(x=x, dtype=dtype, name=node.name) if is_mask else mb.identity(x=x, name=node.name)
    context.add(x, node.name)


def _amount(context: Any, amount: Any) -> Any:
    if not isinstance(amount, str):
        return np.int32(amount)
    found = context[amount]
    return mb.squeeze(x=found, axes=[0]) if found.rank else found


def _padded(x: Any, axis: int, before: Any, after: Any, mode: str, value: Any) -> Any:
    size = size_of(x, axis)
    count = mb.add(x=mb.add(x=size, y=before), y=after)
    places = mb.sub(x=mb.range_1d(start=0, end=count, step=1), y=before)
    last = mb.sub(x=size, y=1)
    gathered = mb.gather(x=x, indices=_SOURCES[mode](places, last), axis=axis)
    if mode != "constant":
        return gathered
    inside = mb.logical_and(x=mb.greater_equal(x=places, y=0), y=mb.less_equal(x=places, y=last))
    aligned = (
        mb.expand_dims(x=inside, axes=[index for index in range(x.rank) if index != axis]) if x.rank > 1 else inside
    )
    return mb.select(cond=aligned, a=gathered, b=types.nptype_from_builtin(x.dtype)(value))


def _nearest(places: Any, last: Any) -> Any:
    return mb.maximum(x=mb.minimum(x=places, y=last), y=0)


def _reflected(places: Any, last: Any) -> Any:
    return mb.sub(x=last, y=mb.abs(x=mb.sub(x=last, y=mb.abs(x=places))))


_SOURCES = {"constant": _nearest, "replicate": _nearest, "reflect": _reflected}
"""Mode -> a function of the places in the result, counted from the input's first element, and the input's last place.

It returns the places of the input that these get their elements from.
"""


@set_converter("pad", "constant_pad_nd")
def _pad(context: Any, node: Any) -> None:
    given = node.inputs[1]
    if not isinstance(given, (list, tuple)):
        _stock(context, node)
        return
    if not all(isinstance(amount, int) for amount in given):
        _varying(context, node, given)
        return
    if min(given, default=0) >= 0 and _mode(node) != "circular":
        _stock(context, node)
        return
    x = _get_inputs(context, node, min_expected=2)[0]
    amounts = [(x.rank - 1 - index // 2, *given[index : index + 2]) for index in range(0, len(given), 2)]
    cropped = _cropped(x, amounts)
    if _mode(node) == "circular":
        context.add(mb.identity(x=_wrapped(cropped, amounts), name=node.name), node.name)
        return
    name = f"{node.name}_cropped"
    context.add(mb.identity(x=cropped, name=name), name)
    node.inputs = (name, tuple(max(amount, 0) for amount in given), *node.inputs[2:])
    _stock(context, node)
