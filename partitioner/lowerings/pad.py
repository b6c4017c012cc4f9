"""Circular padding, and padding by a negative amount, which crops.

Core ML's pad has neither. As in PyTorch, the input is cropped first, and only the rest wraps around.
"""

from typing import Any

from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

from partitioner.lowerings.arguments import argument
from partitioner.lowerings.registry import get_converter, set_converter

Amounts = list[tuple[int, int, int]]
"""Per axis: the axis, the number of elements added before, and the number added after. Negative numbers crop."""

_stock = get_converter("pad")


def _mode(node: Any) -> str:
    mode: str = "constant" if node.kind != "pad" else argument(node, 2, "mode", "constant")
    return mode


def _part(x: Any, axis: int, begin: int, end: int) -> Any:
    """Returns the elements of `x` from `begin` to `end` along an axis."""
    whole = [index != axis for index in range(x.rank)]
    starts = [begin if index == axis else 0 for index in range(x.rank)]
    ends = [end if index == axis else 0 for index in range(x.rank)]
    return mb.slice_by_index(x=x, begin=starts, end=ends, begin_mask=whole, end_mask=whole)


def _cropped(x: Any, amounts: Amounts) -> Any:
    for axis, before, after in amounts:
        if min(before, after) < 0:
            x = _part(x, axis, max(-before, 0), x.shape[axis] - max(-after, 0))
    return x


def _wrapped(x: Any, amounts: Amounts) -> Any:
    for axis, before, after in amounts:
        size = x.shape[axis]
        left = [_part(x, axis, size - before, size)] if before > 0 else []
        right = [_part(x, axis, 0, after)] if after > 0 else []
        x = mb.concat(values=[*left, x, *right], axis=axis) if left or right else x
    return x


@set_converter("pad", "constant_pad_nd")
def _pad(context: Any, node: Any) -> None:
    given = node.inputs[1]
    known = isinstance(given, (list, tuple)) and all(isinstance(amount, int) for amount in given)
    if not known or (min(given, default=0) >= 0 and _mode(node) != "circular"):
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
