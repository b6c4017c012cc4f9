"""Variances and standard deviations, with every correction, over any dimensions, of any size.

Over a whole tensor, the converters of Core ML Tools divide by the number of elements and ignore the correction. Where
sizes vary, they count elements in floating point, and float16 counts to 65504. They have no ``var_mean``.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil.types.symbolic import is_symbolic

from partitioner.lowerings.arguments import argument, keyword
from partitioner.lowerings.registry import Converter, set_converter
from partitioner.lowerings.sizes import size_of

_NOWHERE = 99
_PART = 1024
"""A size that varies is counted in parts of this many elements."""


class _Form(NamedTuple):
    """Positions of the arguments of an overload."""

    dim: int = _NOWHERE
    unbiased: int = _NOWHERE
    keepdim: int = _NOWHERE


_OVERLOADS: Mapping[str, _Form] = MappingProxyType(
    {"": _Form(unbiased=1), ".dim": _Form(dim=1, unbiased=2, keepdim=3), ".correction": _Form(dim=1)}
)


def _spread(form: _Form, *, rooted: bool, with_mean: bool) -> Converter:
    def convert(context: Any, node: Any) -> None:
        x = _get_inputs(context, node, min_expected=1)[0]
        dims = argument(node, form.dim, "dim")
        axes = [dim % x.rank for dim in ([dims] if isinstance(dims, int) else dims or range(x.rank))]
        keeps = bool(argument(node, form.keepdim, "keepdim", False))
        mean = mb.reduce_mean(x=x, axes=axes, keep_dims=True)
        result = mb.reduce_mean(x=mb.square(x=mb.sub(x=x, y=mean)), axes=axes, keep_dims=keeps)
        correction = _correction(node, form)
        if correction:
            result = mb.mul(x=result, y=_factor(x, axes, correction))
        result = mb.sqrt(x=result) if rooted else result
        if not with_mean:
            context.add(mb.identity(x=result, name=node.name))
            return
        context.add((result, mean if keeps else mb.squeeze(x=mean, axes=axes)), node.name)

    return convert


def _correction(node: Any, form: _Form) -> float:
    given = keyword(node, "correction")
    return float(argument(node, form.unbiased, "unbiased", True) if given is None else given)


def _factor(x: Any, axes: list[int], correction: float) -> Any:
    """Returns the number of elements, divided by that number less the correction."""
    varying = [axis for axis in axes if is_symbolic(x.shape[axis])]
    count = math.prod(int(x.shape[axis]) for axis in axes if axis not in varying)
    if not varying:
        return count / (count - correction) if count > correction else math.nan
    share: Any = correction / count
    for axis in varying:
        share = mb.real_div(x=mb.mul(x=share, y=1 / _PART), y=_parts(size_of(x, axis)))
    return mb.inverse(x=mb.sub(x=1.0, y=share), epsilon=0.0)


def _parts(size: Any) -> Any:
    whole = mb.cast(x=mb.floor_div(x=size, y=_PART), dtype="fp32")
    rest = mb.cast(x=mb.mod(x=size, y=_PART), dtype="fp32")
    return mb.add(x=whole, y=mb.mul(x=rest, y=1 / _PART))


for _name, _rooted in (("var", False), ("std", True)):
    for _overload, _form in _OVERLOADS.items():
        set_converter(f"{_name}{_overload}")(_spread(_form, rooted=_rooted, with_mean=False))
        set_converter(f"{_name}_mean{_overload}")(_spread(_form, rooted=_rooted, with_mean=True))
