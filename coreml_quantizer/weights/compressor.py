"""The base class of observers that write compressed weights into the graph themselves, and its helpers."""

from abc import abstractmethod

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from coreml_quantizer.errors import CalibrationError
from coreml_quantizer.estimators.base import RangeObserver


class WeightCompressor(RangeObserver):
    """An observer that holds a weight until conversion and then replaces it.

    torchao calls `convert` on observers that have this method.
    """

    @property
    def weight(self) -> Tensor:
        """The weight, float32.

        Raises:
            CalibrationError: The weight is empty, or contains not-a-number or infinite values.
        """
        (weight,) = self._weight
        weight = weight.detach().float()
        if not weight.numel() or not torch.isfinite(weight).all():
            raise CalibrationError(self.why_no_range())
        return weight

    @abstractmethod
    def convert(self, model: GraphModule, observer_node: Node) -> None:
        """Replaces `observer_node`, which passes the weight to this observer, by the compressed weight."""


def store(model: GraphModule, name: str, value: Tensor) -> Node:
    """Adds `value` to `model` as a buffer with a new name; returns a new node that reads it, at the insertion point."""
    number = 0
    while hasattr(model, f"{name}_{number}"):
        number += 1
    model.register_buffer(f"{name}_{number}", value)
    return model.graph.get_attr(f"{name}_{number}")


def replace(model: GraphModule, observer_node: Node, compressed: Node) -> None:
    """Replaces `observer_node` by `compressed`, a call that returns float32 by default.

    If the weight has another dtype, the call gets it as `output_dtype`.
    """
    value = observer_node.args[0].meta.get("val") if isinstance(observer_node.args[0], Node) else None
    if isinstance(value, Tensor) and value.dtype != torch.float32:
        compressed.update_kwarg("output_dtype", value.dtype)
    compressed.meta = {key: value for key, value in observer_node.meta.items() if key != "quantization_annotation"}
    observer_node.replace_all_uses_with(compressed)
    model.graph.erase_node(observer_node)


def blocks(weight: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Returns `weight` reshaped to (blocks, values in a block), with the blocks in row-major order."""
    shape = [part for extent, size in zip(weight.shape, sizes, strict=True) for part in (extent // size, size)]
    order = [*range(0, 2 * weight.ndim, 2), *range(1, 2 * weight.ndim, 2)]
    count = 1
    for extent, size in zip(weight.shape, sizes, strict=True):
        count *= extent // size
    return weight.reshape(shape).permute(order).reshape(count, -1)


def unblock(values: Tensor, shape: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
    """Undoes `blocks`: returns `values`, of shape (blocks, values in a block), in `shape`."""
    grid = [extent // size for extent, size in zip(shape, sizes, strict=True)]
    order = [axis for pair in zip(range(len(shape)), range(len(shape), 2 * len(shape)), strict=True) for axis in pair]
    return values.reshape([*grid, *sizes]).permute(order).reshape(shape)


def grid_of(shape: tuple[int, ...], sizes: tuple[int, ...]) -> list[int]:
    """Returns the number of blocks along each axis."""
    return [extent // size for extent, size in zip(shape, sizes, strict=True)]
