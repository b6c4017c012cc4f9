"""Element-wise operations of one tensor."""

from collections.abc import Callable

import torch

from partitioner.host.mil.dtypes import BY_NAME
from partitioner.host.registry import register_op

_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}
# Their results are representable wherever their inputs are.
_EXACT_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "abs": torch.abs,
    "ceil": torch.ceil,
    "floor": torch.floor,
    "identity": lambda x: x,
    "logical_not": torch.logical_not,
    "round": torch.round,
    "sign": torch.sign,
}


def _register(op_type: str, function: Callable[[torch.Tensor], torch.Tensor], *, exact: bool) -> None:
    @register_op(op_type, exact=exact)
    def unary(x: torch.Tensor) -> torch.Tensor:
        return function(x)


for _name, _function in _FUNCTIONS.items():
    _register(_name, _function, exact=False)
for _name, _function in _EXACT_FUNCTIONS.items():
    _register(_name, _function, exact=True)


@register_op("clip")
def clip(x: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """Returns x limited to alpha..beta."""
    return torch.clamp(x, alpha, beta)


@register_op("threshold")
def threshold(x: torch.Tensor, alpha: float) -> torch.Tensor:
    """Returns max(x, alpha)."""
    return torch.clamp(x, min=alpha if x.is_floating_point() else int(alpha))


@register_op("inverse")
def inverse(x: torch.Tensor, epsilon: float = 1e-4) -> torch.Tensor:
    """Returns 1 / (x + epsilon)."""
    return torch.reciprocal(x + epsilon)


@register_op("log")
def log(x: torch.Tensor, epsilon: float = 1e-45) -> torch.Tensor:
    """Returns the natural logarithm of x + epsilon."""
    return torch.log(x + epsilon)


@register_op("rsqrt")
def rsqrt(x: torch.Tensor, epsilon: float = 1e-12) -> torch.Tensor:
    """Returns 1 / sqrt(x + epsilon)."""
    return torch.rsqrt(x + epsilon)


@register_op("cast")
def cast(x: torch.Tensor, dtype: str) -> torch.Tensor:
    """Returns x in another type. A floating-point number that becomes an integer is truncated towards zero."""
    return x.to(BY_NAME[_ALIASES.get(dtype, dtype)].compute)


_ALIASES = {"float": "fp32", "double": "fp64", "fp16": "fp16", "i32": "int32"}
