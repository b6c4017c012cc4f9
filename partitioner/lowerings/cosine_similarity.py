"""Cosine similarity, of vectors that are divided by their largest magnitude first.

Core ML Tools multiplies the two sums of squares. In float16 that is infinite for 256 elements of magnitude 1, and the
similarity of any two such vectors is 0.
"""

from typing import Any

from coremltools.converters.mil.frontend.torch.ops import _get_inputs, promote_input_dtypes
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil.types.symbolic import is_symbolic

from partitioner.lowerings.arguments import argument
from partitioner.lowerings.registry import set_converter


@set_converter("cosine_similarity")
def _cosine_similarity(context: Any, node: Any) -> None:
    vectors = promote_input_dtypes(_get_inputs(context, node, min_expected=2)[:2])
    axis, eps = int(argument(node, 2, "dim", 1)), float(argument(node, 3, "eps", 1e-8))
    rank = max(x.rank for x in vectors)
    axis = axis - rank if axis >= 0 else axis  # from the end, where vectors of different rank agree
    first, second = (_unit(x, axis, eps) for x in _equally_long(vectors, axis))
    context.add(mb.reduce_sum(x=mb.mul(x=first, y=second), axes=[axis], keep_dims=False, name=node.name))


def _unit(x: Any, axis: int, eps: float) -> Any:
    """Returns vectors of length one; those shorter than `eps` are divided by that."""
    largest = mb.maximum(x=mb.reduce_max(x=mb.abs(x=x), axes=[axis], keep_dims=True), y=eps)
    scaled = mb.real_div(x=x, y=largest)
    length = mb.reduce_l2_norm(x=scaled, axes=[axis], keep_dims=True)
    return mb.real_div(x=scaled, y=mb.maximum(x=length, y=1.0))


def _equally_long(vectors: list[Any], axis: int) -> list[Any]:
    """Broadcasts vectors along their own dimension, which their lengths depend on."""
    if all(x.rank >= -axis for x in vectors):
        sizes = [x.shape[axis] for x in vectors]
        if sizes[0] == sizes[1] or any(map(is_symbolic, sizes)):
            return vectors
    zeros = mb.mul(x=mb.add(x=vectors[0], y=vectors[1]), y=0.0)
    return [mb.add(x=x, y=zeros) for x in vectors]
