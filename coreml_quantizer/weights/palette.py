"""Palettized weights: indices into lookup tables."""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from coreml_quantizer.specs import LookupTable
from coreml_quantizer.weights.blocks import block_sizes
from coreml_quantizer.weights.compressor import WeightCompressor, blocks, grid_of, replace, store, unblock
from coreml_quantizer.weights.kmeans import cluster, nearest


class PaletteObserver(WeightCompressor):
    """An observer that clusters a weight into `2**bits` values, with one table or one for each group of channels.

    At conversion the graph gets stored indices and `quant.dequantize_codebook`, which becomes Core ML's
    `constexpr_lut_to_dense`. Source: coremltools guide, Palettization; Lloyd 1982 for the clustering.
    """

    def block_sizes(self) -> tuple[int, ...]:
        """Returns the extent of the part of the weight that shares one table, along each axis."""
        return block_sizes(tuple(self.weight.shape), self.spec)

    def convert(self, model: GraphModule, observer_node: Node) -> None:
        """Replaces the weight by stored indices, tables, and the lookup."""
        self.pack(model, observer_node, self.weight, self.tables(self.weight))

    def tables(self, weight: Tensor) -> Tensor:
        """Returns the ascending values of each table of `weight`, float32, shape (tables, values).

        They are rounded to float16, because Core ML keeps tables in float16.
        """
        storage = self.spec.storage
        assert isinstance(storage, LookupTable)
        values = blocks(weight, block_sizes(tuple(weight.shape), self.spec))
        tables = torch.stack([cluster(row, 2**storage.bits) for row in values])
        return tables.to(torch.float16).to(weight.device, torch.float32)

    def pack(self, model: GraphModule, observer_node: Node, weight: Tensor, tables: Tensor) -> None:
        """Replaces `observer_node` by `weight`, stored as the indices of the nearest values in `tables`."""
        # Registers the operator.
        import torchao.prototype.quantization.codebook_coreml.codebook_ops  # noqa: F401

        storage = self.spec.storage
        assert isinstance(storage, LookupTable)
        shape, device = tuple(weight.shape), weight.device
        sizes = block_sizes(shape, self.spec)
        values = blocks(weight, sizes)
        indices = torch.stack([nearest(row, table) for row, table in zip(values, tables.double().cpu(), strict=True)])
        table = tables.reshape([*grid_of(shape, sizes), 2**storage.bits, 1])
        with model.graph.inserting_before(observer_node):
            packed = store(model, "_palette_indices", unblock(indices, shape, sizes).contiguous().to(device))
            arguments = (
                # The operator would take uint8 for a mask.
                model.graph.call_function(torch.ops.aten.to.dtype, (packed, torch.int32)),
                store(model, "_palette_table", table.to(device)),
                storage.bits,
                list(sizes),
            )
            compressed = model.graph.call_function(torch.ops.quant.dequantize_codebook.default, arguments)
        replace(model, observer_node, compressed)
