"""Variance and standard deviation of a whole tensor.

Without dimensions, the converters of Core ML Tools divide by the number of elements and ignore the correction.
"""

from typing import Any

from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

from partitioner.lowerings.arguments import argument, keyword
from partitioner.lowerings.registry import Converter, get_converter, set_converter

_UNBIASED = 1


def _of_everything(stock: Converter, kind: str) -> Converter:
    def convert(context: Any, node: Any) -> None:
        x = _get_inputs(context, node, min_expected=1)[0]
        name = "unbiased" if kind in ("var", "std") else "correction"
        dims = None if name == "unbiased" else argument(node, 1, "dim")
        known = all(isinstance(size, int) for size in x.shape)
        if not known or (dims is not None and dims != () and dims != []):
            stock(context, node)
            return
        given = argument(node, 1, name) if name == "unbiased" else keyword(node, name)
        correction = _UNBIASED if given is None else float(given)
        flat = mb.reshape(x=x, shape=(-1,))
        centered = mb.sub(x=flat, y=mb.reduce_mean(x=flat, axes=(0,), keep_dims=True))
        total = mb.reduce_sum_square(x=centered, axes=(0,), keep_dims=True)
        variance = mb.mul(x=total, y=1.0 / (flat.shape[0] - correction))
        result = mb.sqrt(x=variance) if kind.startswith("std") else variance
        shape = tuple(node.meta["val"].shape)
        done = mb.reshape(x=result, shape=shape, name=node.name) if shape else None
        context.add(done or mb.squeeze(x=result, axes=(0,), name=node.name), node.name)

    return convert


for _name in ("var", "std", "var.correction", "std.correction"):
    set_converter(_name)(_of_everything(get_converter(_name), _name))
