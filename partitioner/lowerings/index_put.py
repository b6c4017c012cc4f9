"""Assignment to several indices along some dimensions (``x[:, i] = y``, ``index_copy``, ``index_fill``, ``index_add``).

If some dimensions are whole slices (``:``), the converter of Core ML Tools takes a single index only. This index must
be counted from the front, and the converter cannot add to the old values. It also does not broadcast the indices to
one shape. Here the indexed dimensions are moved to the front for the assignment.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from coremltools.converters.mil.frontend._utils import pymil_broadcast_tensors, pymil_broadcast_to
from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil import types

from partitioner.lowerings.arguments import keyword
from partitioner.lowerings.registry import get_converter, set_converter

_stock = get_converter("index_put")


@set_converter("index_put")
def _index_put(context: Any, node: Any) -> None:
    x, indices, values, *rest = _get_inputs(context, node, expected=(3, 4))
    accumulate = bool(rest[0].val if rest else keyword(node, "accumulate", False))
    if not _is_known(x, indices):
        _stock(context, node)
        return
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    places = tuple(np.broadcast_shapes(*(indices[axis].shape for axis in axes)))
    if places == (1,) and not _is_broadcastable(values.shape, _shape(x, axes, places)):
        places = ()  # a scalar, which as an input of a model has one dimension
    if places == (1,) and len(axes) < len(indices) and not accumulate:
        node.inputs = [node.inputs[0], _named(context, node, x, indices), *node.inputs[2:]]
        _stock(context, node)
        return
    order = [*axes, *(axis for axis in range(x.rank) if axis not in axes)]
    given = [_from_the_front(indices[axis], x.shape[axis]) for axis in axes]
    given = given if len(given) == 1 else pymil_broadcast_tensors(given)
    updates = _updates(x, axes, places, values)
    changed = mb.scatter_nd(
        data=mb.transpose(x=x, perm=order),
        indices=mb.stack(values=given, axis=given[0].rank),
        updates=updates,
        mode="add" if accumulate else "update",
    )
    context.add(mb.transpose(x=changed, perm=np.argsort(order).tolist(), name=node.name), node.name)


def _is_known(x: Any, indices: list[Any]) -> bool:
    given = [index for index in indices if index is not None]
    sizes = [size for value in (x, *given) for size in value.shape]
    integers = all(types.is_int(index.dtype) for index in given)
    known = all(isinstance(size, (int, np.integer)) for size in sizes)
    return integers and known and not bool(types.is_bool(x.dtype))


def _named(context: Any, node: Any, x: Any, indices: list[Any]) -> list[str | None]:
    """Adds the indices to the context, counted from the front, and returns their names."""
    names: list[str | None] = []
    for axis, index in enumerate(indices):
        name = None if index is None else f"{node.name}_index_{axis}"
        names.append(name)
        if index is not None:
            context.add(_from_the_front(index, x.shape[axis]), name)
    return names


def _from_the_front(index: Any, size: int) -> Any:
    """Counts negative indices from the front, which Core ML does up to iOS16 only. A scalar becomes a vector."""
    index = mb.expand_dims(x=index, axes=[0]) if index.rank == 0 else index
    return mb.select(cond=mb.less(x=index, y=0), a=mb.add(x=index, y=size), b=index)


def _front(axes: list[int]) -> int:
    """Returns how many dimensions of ``x[indices]`` come before the dimensions of the indices.

    If the indexed dimensions are adjacent, the dimensions of the indices replace them. Otherwise they come first.
    """
    return axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0


def _shape(x: Any, axes: list[int], places: tuple[int, ...]) -> list[int]:
    """Returns the shape of ``x[indices]``."""
    around = [size for axis, size in enumerate(x.shape) if axis not in axes]
    return [*around[: _front(axes)], *places, *around[_front(axes) :]]


def _is_broadcastable(given: Sequence[int], wanted: Sequence[int]) -> bool:
    pairs = zip(reversed(given), reversed(wanted), strict=False)
    return len(given) <= len(wanted) and all(size in (1, full) for size, full in pairs)


def _updates(x: Any, axes: list[int], places: tuple[int, ...], values: Any) -> Any:
    """Returns the new values with the dimensions of the indices first.

    Args:
        x: The tensor that is assigned to.
        axes: The indexed dimensions.
        places: The shape of the indices, ``()`` for a scalar.
        values: The assigned values, which can be broadcast to the shape of ``x[indices]``.
    """
    values = mb.cast(x=values, dtype=types.builtin_to_string(x.dtype))
    shape = _shape(x, axes, places)
    wide = pymil_broadcast_to(values, shape, f"{values.name}_everywhere")
    if not places:
        return mb.expand_dims(x=wide, axes=[0])
    moved = list(range(_front(axes), _front(axes) + len(places)))
    return mb.transpose(x=wide, perm=[*moved, *(axis for axis in range(len(shape)) if axis not in moved)])
