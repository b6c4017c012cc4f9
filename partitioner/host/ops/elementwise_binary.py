"""Element-wise operations of two tensors, with broadcasting."""

from collections.abc import Callable

import torch

from partitioner.host.registry import register_op

_Binary = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _floor_div(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.div(x, y, rounding_mode="floor")


def _power(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if x.is_floating_point() or y.is_floating_point() or bool((y >= 0).all()):
        return torch.pow(x, y)
    # torch refuses negative integer exponents; the mathematical result is cut to an integer.
    return torch.pow(x.double(), y.double()).trunc()


_FUNCTIONS: dict[str, _Binary] = {
    "add": torch.add,
    "floor_div": _floor_div,
    "mod": torch.remainder,
    "mul": torch.mul,
    "pow": _power,
    "real_div": torch.div,
    "sub": torch.sub,
}
_EXACT_FUNCTIONS: dict[str, _Binary] = {
    "equal": torch.eq,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "not_equal": torch.ne,
}


def _register(op_type: str, function: _Binary, *, exact: bool) -> None:
    @register_op(op_type, exact=exact)
    def binary(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return function(x, y)


for _name, _function in _FUNCTIONS.items():
    _register(_name, _function, exact=False)
for _name, _function in _EXACT_FUNCTIONS.items():
    _register(_name, _function, exact=True)


@register_op("select", exact=True)
def select(cond: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Returns a where cond is true, else b."""
    return torch.where(cond.bool(), a, b)
