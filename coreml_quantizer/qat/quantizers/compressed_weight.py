"""Fake quantizers for weights that are stored in blocks or in lookup tables."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from coreml_quantizer.graph.values import evaluate
from coreml_quantizer.process.lifecycle import refuse_export
from coreml_quantizer.qat.quantizers.base import FakeQuantizer
from coreml_quantizer.qat.quantizers.rounding import fake_quantize_blocks
from coreml_quantizer.qat.schedule import Mode
from coreml_quantizer.specs import LookupTable
from coreml_quantizer.weights import BlockObserver, PaletteObserver
from coreml_quantizer.weights.blocks import block_sizes
from coreml_quantizer.weights.compressor import blocks, unblock


class BlockFakeQuantize(FakeQuantizer):
    """A fake quantizer with a scale and zero point for each block of a weight, which follow the weight."""

    def __init__(self, observer: BlockObserver) -> None:
        super().__init__(observer.spec)
        self.packer = observer
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))
        self.register_buffer("range_known", torch.tensor(0, dtype=torch.uint8))
        self.known = False

    def forward(self, weight: Tensor, mode: Mode = None) -> Tensor:
        """Fake-quantizes a weight of any shape."""
        refuse_export()
        if self.observes and (mode is not False or not self.known):
            self.packer.tensor_name = self.tensor_name
            scale, zero_point = self.packer.grid(weight.detach())
            self.scale, self.zero_point, self.known = scale, zero_point.to(torch.int32), True
        return self.quantize(weight) if self.quantizes and self.known else weight

    def quantize(self, x: Tensor) -> Tensor:
        """Rounds every block with its current scale and zero point."""
        sizes = block_sizes(tuple(x.shape), self.spec)
        scale, zero_point = self.scale[:, None], self.zero_point[:, None]
        rows = fake_quantize_blocks(blocks(x, sizes), scale, zero_point, self.quant_min, self.quant_max)
        return unblock(rows, tuple(x.shape), sizes)

    def switches(self) -> Mapping[str, str]:
        return MappingProxyType({"range_known": "known", **super().switches()})

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        return self.scale, self.zero_point.to(torch.int64)

    def convert(self, model: GraphModule, node: Node) -> None:
        """Replaces the call by stored integers and their dequantization; torchao calls it."""
        weight = _weight(model, node)
        if not self.known:
            self(weight)
        self.packer.pack(model, node, weight, self.scale, self.zero_point)


class PaletteFakeQuantize(FakeQuantizer):
    """A fake quantizer that replaces each weight by the nearest entry of its table; gradients pass straight through.

    k-means finds the tables again after every `INTERVAL` training steps, so that they follow the weights.
    """

    INTERVAL = 50
    RESIZED: ClassVar[tuple[str, ...]] = ("tables",)

    def __init__(self, observer: PaletteObserver) -> None:
        super().__init__(observer.spec)
        storage = observer.spec.storage
        assert isinstance(storage, LookupTable)
        self.packer = observer
        self.register_buffer("tables", torch.zeros(1, 2**storage.bits))
        self.register_buffer("age_of_tables", torch.tensor(0))
        self.register_buffer("range_known", torch.tensor(0, dtype=torch.uint8))
        self.known = False
        self.age = 0

    def forward(self, weight: Tensor, mode: Mode = None) -> Tensor:
        """Palettizes a weight of any shape."""
        refuse_export()
        if self.observes and (not self.known or (mode is not False and self.age >= self.INTERVAL)):
            self.packer.tensor_name = self.tensor_name
            self.tables = self.packer.tables(weight.detach())
            self.known, self.age = True, 0
        self.age += mode is not False
        return self.quantize(weight) if self.quantizes and self.known else weight

    def quantize(self, x: Tensor) -> Tensor:
        """Replaces each value by the nearest entry of the current tables."""
        shape = tuple(x.shape)
        sizes = block_sizes(shape, self.spec)
        rows = blocks(x.detach(), sizes)
        borders = (self.tables[:, 1:] + self.tables[:, :-1]) / 2
        indices = torch.searchsorted(borders.contiguous(), rows.contiguous())
        nearest = unblock(self.tables.gather(1, indices), shape, sizes)
        return x + (nearest - x).detach()

    def switches(self) -> Mapping[str, str]:
        return MappingProxyType({"range_known": "known", "age_of_tables": "age", **super().switches()})

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        """Refuses, because a palettized weight has tables instead.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("A palettized weight has tables, not a scale and a zero point.")

    def convert(self, model: GraphModule, node: Node) -> None:
        """Replaces the call by stored indices, tables and the lookup; torchao calls it."""
        weight = _weight(model, node)
        self.packer.pack(model, node, weight, self.tables if self.known else self.packer.tables(weight))


def _weight(model: GraphModule, node: Node) -> Tensor:
    (source,) = node.args[:1]
    assert isinstance(source, Node)
    weight: Tensor = evaluate(source, model)
    return weight.detach().float()
