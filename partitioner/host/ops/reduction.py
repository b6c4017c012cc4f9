"""Reductions."""

from collections.abc import Callable

import torch

from partitioner.host.mil.dtypes import BY_NAME
from partitioner.host.registry import Ints, register_op

_Reduce = Callable[[torch.Tensor, list[int], bool], torch.Tensor]


def _prod(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keep, dtype=x.dtype)
    return x


def _mean(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return torch.mean(x if x.is_floating_point() else x.float(), axes, keep)


_FUNCTIONS: dict[str, _Reduce] = {
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keep, dtype=x.dtype),
    "reduce_l2_norm": lambda x, axes, keep: x.float().square().sum(axes, keep).sqrt(),
    "reduce_log_sum": lambda x, axes, keep: x.float().sum(axes, keep).log(),
    "reduce_log_sum_exp": lambda x, axes, keep: torch.logsumexp(x.float(), axes, keep),
    "reduce_mean": _mean,
    "reduce_prod": _prod,
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keep, dtype=x.dtype),
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keep, dtype=x.dtype),
}
_EXACT_FUNCTIONS: dict[str, _Reduce] = {
    "reduce_max": lambda x, axes, keep: torch.amax(x, axes, keep),
    "reduce_min": lambda x, axes, keep: torch.amin(x, axes, keep),
}


def _register(op_type: str, function: _Reduce, *, exact: bool) -> None:
    @register_op(op_type, exact=exact)
    def reduce(x: torch.Tensor, axes: Ints | None = None, keep_dims: bool = False) -> torch.Tensor:
        if x.ndim == 0:
            return function(x.reshape(1), [0], False)
        chosen = sorted({axis % x.ndim for axis in axes}) if axes else list(range(x.ndim))
        return function(x, chosen, keep_dims)


for _name, _function in _FUNCTIONS.items():
    _register(_name, _function, exact=False)
for _name, _function in _EXACT_FUNCTIONS.items():
    _register(_name, _function, exact=True)


@register_op("reduce_argmax", exact=True)
def reduce_argmax(
    x: torch.Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> torch.Tensor:
    """Returns the index of the largest element along an axis."""
    return torch.argmax(x, axis, keep_dims).to(BY_NAME[output_dtype].compute)


@register_op("reduce_argmin", exact=True)
def reduce_argmin(
    x: torch.Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> torch.Tensor:
    """Returns the index of the smallest element along an axis."""
    return torch.argmin(x, axis, keep_dims).to(BY_NAME[output_dtype].compute)
