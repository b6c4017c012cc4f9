"""Products of matrices with factors: ``beta * x + alpha * (a @ b)``.

Core ML multiplies only values of one type, but the converters of Core ML Tools pass integer factors on as they are. For
batches of matrices (``baddbmm``), they multiply the first matrix by `alpha` before the product. That puts an operation
between a dequantize and the product.
"""

from typing import Any

from coremltools.converters.mil.frontend.torch.ops import _get_inputs, promote_input_dtypes
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil import types

from partitioner.lowerings.arguments import argument
from partitioner.lowerings.registry import set_converter

_FACTORS = 3


@set_converter("addmm", "baddbmm")
def _scaled_product(context: Any, node: Any) -> None:
    x, first, second = _get_inputs(context, node, expected=[3, 4, 5])[:_FACTORS]
    beta, alpha = argument(node, _FACTORS + 0, "beta", 1), argument(node, _FACTORS + 1, "alpha", 1)
    product = mb.matmul(x=first, y=second)
    if alpha != 1:
        product = _times(product, alpha)
    if beta == 0:  # whatever x holds, not a number included
        context.add(mb.identity(x=product, name=node.name))
        return
    if beta != 1:
        x = _times(x, beta)
    x, product = promote_input_dtypes([x, product])
    context.add(mb.add(x=x, y=product, name=node.name))


def _times(x: Any, factor: float) -> Any:
    return mb.mul(x=x, y=types.nptype_from_builtin(x.dtype)(factor))
