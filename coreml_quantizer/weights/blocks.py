"""Integer weights with one scale for each block of inputs, or for each group of channels."""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from coreml_quantizer.specs import PerBlock, PerChannel, PerChannelGroup, TensorSpec
from coreml_quantizer.weights.compressor import WeightCompressor, blocks, grid_of, replace, store, unblock


class BlockObserver(WeightCompressor):
    """An observer that quantizes a weight block by block, with the range estimator of its spec for every block.

    At conversion the graph gets stored integers and `torchao.dequantize_affine`, which becomes Core ML's
    `constexpr_blockwise_shift_scale` (iOS18). Source of per-block scales: coremltools guide, Quantization, Granularity.
    """

    def block_sizes(self) -> tuple[int, ...]:
        """Returns the extent of one block along each axis of the weight."""
        return block_sizes(tuple(self.weight.shape), self.spec)

    def convert(self, model: GraphModule, observer_node: Node) -> None:
        """Replaces the weight by stored integers and their dequantization."""
        self.pack(model, observer_node, self.weight, *self.grid(self.weight))

    def grid(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Returns scale (float32) and zero point (int64) of every block of `weight`, each of shape (blocks,)."""
        from coreml_quantizer.estimators import ESTIMATORS

        rows = TensorSpec(self.storage, self.spec.scheme, PerChannel(0), self.spec.estimator)
        estimator = ESTIMATORS[self.spec.estimator.name](rows, **dict(self.spec.estimator.arguments))
        estimator.tensor_name = self.tensor_name
        estimator.watch_weight(blocks(weight, block_sizes(tuple(weight.shape), self.spec)))
        return estimator.calculate_qparams()

    def pack(self, model: GraphModule, observer_node: Node, weight: Tensor, scale: Tensor, zero_point: Tensor) -> None:
        """Replaces `observer_node` by `weight`, stored as integers with `scale` and `zero_point`."""
        storage, sizes = self.storage, block_sizes(tuple(weight.shape), self.spec)
        values = blocks(weight, sizes)
        steps = torch.round(values / scale[:, None]) + zero_point[:, None]
        integers = steps.clamp(storage.quant_min, storage.quant_max).to(storage.dtype)
        grid = grid_of(tuple(weight.shape), sizes)
        with model.graph.inserting_before(observer_node):
            arguments = (
                store(model, "_packed_weight", unblock(integers, tuple(weight.shape), sizes).contiguous()),
                list(sizes),
                store(model, "_packed_scale", scale.reshape(grid)),
                store(model, "_packed_zero_point", zero_point.reshape(grid).to(storage.dtype)),
                storage.dtype,
                storage.quant_min,
                storage.quant_max,
            )
            compressed = model.graph.call_function(torch.ops.torchao.dequantize_affine.default, arguments)
        replace(model, observer_node, compressed)


def block_sizes(shape: tuple[int, ...], spec: TensorSpec) -> tuple[int, ...]:
    """Returns the extent of one block along each axis of a weight of `shape`.

    If the size in the spec does not divide the weight, `PerBlock` falls back to one block per channel, and
    `PerChannelGroup` to one group of all channels.
    """
    granularity = spec.granularity
    if isinstance(granularity, PerBlock):
        channel = granularity.axis % len(shape)
        summed = 1 if channel == 0 else channel - 1
        size = granularity.size if shape[summed] % granularity.size == 0 else shape[summed]
        within = {channel: 1, summed: size}
        return tuple(within.get(axis, extent) for axis, extent in enumerate(shape))
    if isinstance(granularity, PerChannelGroup):
        channel = granularity.axis % len(shape)
        size = granularity.size if shape[channel] % granularity.size == 0 else shape[channel]
        return tuple(size if axis == channel else extent for axis, extent in enumerate(shape))
    return shape
