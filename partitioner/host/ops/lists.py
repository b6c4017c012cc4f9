"""Lists of tensors. A list is a value: writing returns a new one."""

from typing import Any, TypeAlias

import torch

from partitioner.host.mil.dtypes import BY_NAME, INT32
from partitioner.host.registry import Tensors, register_op

TensorList: TypeAlias = "list[torch.Tensor | None]"


@register_op("make_list")
def make_list(
    elem_shape: Tensors, init_length: int = 1, dynamic_length: bool = True, dtype: str = "fp32"
) -> TensorList:
    """Returns a list of zeros; elements whose shape holds a symbol stay empty until they are written."""
    del dynamic_length  # writing past the end grows any list
    if any(isinstance(size, str) for size in elem_shape):
        return [None] * init_length
    shape = [int(value) for size in elem_shape for value in size.reshape(-1)]
    return [torch.zeros(shape, dtype=BY_NAME[dtype].compute) for _ in range(init_length)]


@register_op("list_length", exact=True)
def list_length(ls: Any) -> torch.Tensor:
    """Returns the number of elements."""
    return torch.tensor(len(ls), dtype=INT32.compute)


@register_op("list_read", exact=True)
def list_read(ls: Any, index: int) -> torch.Tensor:
    """Returns the element at an index."""
    return _element(ls, index)


@register_op("list_write", exact=True)
def list_write(ls: Any, index: int, value: torch.Tensor) -> TensorList:
    """Returns the list with another element at an index."""
    return _written(ls, {index: value})


@register_op("list_gather", exact=True)
def list_gather(ls: Any, indices: torch.Tensor) -> torch.Tensor:
    """Returns elements stacked along a new first dimension."""
    return torch.stack([_element(ls, int(index)) for index in indices.flatten()])


@register_op("list_scatter", exact=True)
def list_scatter(ls: Any, indices: torch.Tensor, value: torch.Tensor) -> TensorList:
    """Returns the list with the slices of ``value`` at ``indices``."""
    return _written(ls, {int(index): row for index, row in zip(indices.flatten(), value.unbind(0), strict=True)})


def _element(ls: TensorList, index: int) -> torch.Tensor:
    element = ls[index]
    if element is None:
        raise ValueError(f"element {index} of a list of {len(ls)} is read before it is written")
    return element


def _written(ls: TensorList, values: dict[int, torch.Tensor]) -> TensorList:
    result = list(ls)
    needed = max(values, default=-1) + 1
    if needed > len(result):
        model = next((element for element in result if element is not None), None)
        filler = None if model is None else torch.zeros_like(model)
        result += [filler] * (needed - len(result))
    for index, value in values.items():
        result[index] = value
    return result
