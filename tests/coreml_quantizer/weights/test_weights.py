"""Weights in four bits, blocks, channel groups and lookup tables, through prepare and convert."""

import numpy as np
import pytest
import torch
from helpers.graphs import call, prepare
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from coreml_quantizer import CalibrationError, LayerConfig, QuantizerConfig, WeightConfig
from coreml_quantizer.weights.compressor import blocks, unblock
from coreml_quantizer.weights.kmeans import cluster, nearest

aten = torch.ops.aten
LAYERS = {
    "linear": (nn.Linear(64, 24), (4, 64), 0),
    "conv": (nn.Conv2d(32, 24, 3), (1, 32, 6, 6), 0),
    "grouped conv": (nn.Conv2d(64, 24, 3, groups=2), (1, 64, 6, 6), 0),
    "transposed conv": (nn.ConvTranspose2d(32, 24, 2), (1, 32, 4, 4), 1),
}


def convert(layer: nn.Module, shape: tuple[int, ...], weight: WeightConfig) -> GraphModule:
    inputs = (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)
    return convert_pt2e(prepare(layer, inputs, QuantizerConfig(LayerConfig(weight, None))))


def weight_node(graph: GraphModule) -> Node:
    for op in (aten.linear, aten.conv2d, aten.conv_transpose2d):
        for node in graph.graph.nodes:
            if getattr(node.target, "overloadpacket", None) is op:
                return node.args[1]
    raise AssertionError("no layer")


def values(graph: GraphModule, node: object) -> object:
    if not isinstance(node, Node):
        return node
    if node.op == "get_attr":
        return graph.get_buffer(node.target)
    return node.target(*(values(graph, argument) for argument in node.args))


def blocks_of(weight: np.ndarray, axis: int, block: int) -> np.ndarray:
    """(channels, blocks, values): inputs are on the axis before the channels, or behind when those come first."""
    channels_first = np.moveaxis(weight, axis, 0)
    return channels_first.reshape(channels_first.shape[0], channels_first.shape[1] // block, -1)


@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
@pytest.mark.parametrize(("dtype", "bits"), [("int4", 4), ("int8", 8), ("uint4", 4), ("uint8", 8)])
@pytest.mark.parametrize("layer", LAYERS)
def test_blocks_have_their_own_scales(layer: str, dtype: str, bits: int, scheme: str) -> None:
    module, shape, axis = LAYERS[layer]
    graph = convert(module, shape, WeightConfig(dtype, scheme, block_size=8))
    node = weight_node(graph)
    assert node.target is torch.ops.torchao.dequantize_affine.default
    integers, _, scale, zero_point, _, low, high = (values(graph, argument) for argument in node.args)
    assert integers.shape == module.weight.shape
    assert low <= int(integers.min()) <= int(integers.max()) <= high
    assert high - low == 2**bits - 1
    assert torch.equal(scale, scale.half().float())
    expected = blocks_of(module.weight.detach().double().numpy(), axis, 8)
    found = blocks_of(values(graph, node).double().numpy(), axis, 8)
    peak = np.abs(expected).max(-1) * 2 if scheme == "symmetric" else np.ptp(np.append(expected, 0 * expected, -1), -1)
    # Half a step, and another half where the middle of the range is no integer; scales are rounded up to float16.
    assert (np.abs(found - expected).max(-1) <= peak / (2**bits - 1) * 1.01).all()
    assert scale.numel() == expected.shape[0] * expected.shape[1] == zero_point.numel()


def test_a_block_that_does_not_divide_becomes_a_channel() -> None:
    graph = convert(nn.Linear(30, 4), (2, 30), WeightConfig("int4", block_size=8))
    assert values(graph, weight_node(graph).args[2]).shape == (4, 1)


def test_channel_groups_share_a_scale() -> None:
    module = nn.Linear(16, 12)
    graph = convert(module, (2, 16), WeightConfig("int8", group_size=4))
    scale = values(graph, weight_node(graph).args[2])
    peaks = module.weight.detach().reshape(3, -1).abs().amax(1)
    assert scale.shape == (3, 1)
    assert ((scale[:, 0] >= peaks / 127.5) & (scale[:, 0] <= peaks / 127.5 * 1.001)).all()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_tables_hold_two_to_the_bits_values(bits: int, layer: str) -> None:
    module, shape, _ = LAYERS[layer]
    graph = convert(module, shape, WeightConfig(f"lut{bits}"))
    node = weight_node(graph)
    assert node.target is torch.ops.quant.dequantize_codebook.default
    table = values(graph, node.args[1]).flatten()
    assert table.numel() == 2**bits
    assert torch.equal(table, table.half().float())
    found = values(graph, node)
    assert found.unique().numel() <= 2**bits
    distance = (module.weight.detach().flatten()[:, None] - table[None, :]).abs()
    assert torch.equal((found - module.weight.detach()).abs().flatten(), distance.amin(1))


def test_groups_of_channels_have_their_own_tables() -> None:
    module, shape, _ = LAYERS["linear"]
    graph = convert(module, shape, WeightConfig("lut4", group_size=8))
    assert values(graph, weight_node(graph).args[1]).shape == (3, 1, 16, 1)
    whole = convert(module, shape, WeightConfig("lut4"))
    error = [float((values(g, weight_node(g)) - module.weight).detach().norm()) for g in (graph, whole)]
    assert error[0] < error[1]


@pytest.mark.parametrize("count", [2, 4, 16])
@pytest.mark.parametrize("kind", ["normal", "heavy", "few", "constant"])
def test_clusters_are_as_good_as_scikit_learns(kind: str, count: int) -> None:
    normal = torch.randn(3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = {"normal": normal, "heavy": normal**3, "few": normal.sign(), "constant": torch.full_like(normal, 0.3)}[kind]
    centers = cluster(data, count)
    assert torch.equal(centers, centers.sort().values)
    found = float((centers[nearest(data, centers).long()] - data).square().sum())
    distinct = len(data.unique())
    reference = KMeans(min(count, distinct), n_init=5, random_state=0).fit(data.numpy()[:, None]).inertia_
    assert found <= 1.05 * reference + 1e-9


def test_blocks_come_back_where_they_were() -> None:
    weight = torch.arange(4 * 6 * 8).reshape(4, 6, 8)
    for sizes in ((1, 2, 8), (4, 3, 1), (2, 6, 4)):
        cut = blocks(weight, sizes)
        assert cut.shape == (weight.numel() // np.prod(sizes), np.prod(sizes))
        assert torch.equal(cut[0], weight[: sizes[0], : sizes[1], : sizes[2]].flatten())
        assert torch.equal(unblock(cut, (4, 6, 8), sizes), weight)


def test_tied_weights_and_activations_go_along() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(16, 8)
            self.head = nn.Linear(8, 16, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.table(x))

    model, inputs = Tied().eval(), (torch.arange(16),)
    prepared = prepare(model, inputs, QuantizerConfig(LayerConfig(WeightConfig("int4", block_size=4))))
    prepared(*inputs)
    converted = convert_pt2e(prepared)
    linear = call(converted, aten.linear)
    assert linear.args[1].target is torch.ops.torchao.dequantize_affine.default
    assert linear.args[0].target is torch.ops.quantized_decomposed.dequantize_per_tensor.default
    with torch.no_grad():
        expected = model(*inputs)
        assert float((converted(*inputs) - expected).norm() / expected.norm()) < 0.25


@pytest.mark.parametrize("weight", [WeightConfig("int4", block_size=4), WeightConfig("lut4")], ids=["block", "table"])
def test_weights_that_are_no_numbers_are_named(weight: WeightConfig) -> None:
    layer = nn.Linear(8, 4)
    with torch.no_grad():
        layer.weight[1, 2] = torch.inf
    with pytest.raises(CalibrationError, match=r"weight 'weight' .* infinite"):
        convert(layer, (2, 8), weight)


@pytest.mark.parametrize("preset", ["w4_block32", "lut4", "lut4_group16"])
def test_models_in_half_precision(preset: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(32, 64, 3).half(), (torch.randn(1, 32, 6, 6).half(),)
    converted = convert_pt2e(prepare(layer, x, preset))
    assert weight_node(converted).kwargs["output_dtype"] == torch.float16
    with torch.no_grad():
        got, wanted = converted(*x), convert_pt2e(prepare(layer.float(), (x[0].float(),), preset))(x[0].float())
    assert got.dtype == torch.float16
    assert (got - wanted).abs().max() < 2**-9 * wanted.abs().max()
