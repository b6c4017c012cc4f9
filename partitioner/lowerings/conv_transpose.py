"""Transposed convolutions with ``output_padding``.

Core ML has no such argument. Without padding, a transposed convolution computes every position that an input reaches.
What PyTorch returns is a part of that: it begins ``padding`` positions later and ends ``padding - output_padding``
positions earlier. Where this is negative, positions follow that no input reaches and that hold the bias alone.
"""

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil import Var

from partitioner.lowerings.arguments import argument, remove_keywords
from partitioner.lowerings.registry import Converter, get_converter, set_converter

_BIAS, _PADDING = 2, 4


class _Positions(NamedTuple):
    """Positions of arguments; `transposed` is None for an operator that is always transposed."""

    output_padding: int
    transposed: int | None = None


_OPERATORS: Mapping[str, _Positions] = MappingProxyType(
    {
        "convolution": _Positions(7, transposed=6),
        "conv_transpose1d": _Positions(5),
        "conv_transpose2d.input": _Positions(5),
        "conv_transpose3d.input": _Positions(5),
    }
)


def _lowered(stock: Converter, positions: _Positions) -> Converter:
    def convert(context: Any, node: Any) -> None:
        spatial = context[node.inputs[1]].rank - 2
        added = _sizes(argument(node, positions.output_padding, "output_padding", 0), spatial)
        transposed = positions.transposed is None or argument(node, positions.transposed, "transposed", False)
        if not transposed or not any(added):
            stock(context, node)
            return
        padding = _sizes(argument(node, _PADDING, "padding", 0), spatial)
        bias = argument(node, _BIAS, "bias")
        full = _convolved(context, node, stock, positions)
        begins, ends = padding, [cut - more for cut, more in zip(padding, added, strict=True)]
        x = _cut(full, begins, [max(end, 0) for end in ends])
        behind = [max(-end, 0) for end in ends]
        if any(behind):
            x = mb.pad(x=x, pad=[0, 0, 0, 0, *(size for more in behind for size in (0, more))])
        if bias is None:
            x = mb.identity(x=x, name=node.name)
        else:
            x = mb.add(x=x, y=mb.expand_dims(x=context[bias], axes=[0, *range(2, spatial + 2)]), name=node.name)
        context.add(x)

    return convert


def _sizes(value: Any, spatial: int) -> list[int]:
    """Returns an argument for each spatial dimension."""
    sizes = list(value) if isinstance(value, Sequence) else [value]
    return [int(size) for size in (sizes * spatial if len(sizes) == 1 else sizes)]


def _convolved(context: Any, node: Any, stock: Converter, positions: _Positions) -> Var:
    """Returns the convolution without padding and bias."""
    inner = copy.copy(node)
    inner.name = f"{node.name}_full"
    zeros = {_BIAS: None, _PADDING: [0], positions.output_padding: [0]}
    inner.inputs = tuple(zeros.get(index, value) for index, value in enumerate(node.inputs))
    remove_keywords(inner, "bias", "padding", "output_padding")
    stock(context, inner)
    return context[inner.name]


def _cut(x: Var, begins: Sequence[int], ends: Sequence[int]) -> Var:
    """Returns x without some positions at the beginning and at the end of each spatial dimension."""
    if not any(begins) and not any(ends):
        return x
    return mb.slice_by_index(
        x=x,
        begin=[0, 0, *begins],
        end=[0, 0, *(-end for end in ends)],
        end_mask=[True, True, *(end == 0 for end in ends)],
    )


for _name, _positions in _OPERATORS.items():
    set_converter(_name)(_lowered(get_converter(_name), _positions))
