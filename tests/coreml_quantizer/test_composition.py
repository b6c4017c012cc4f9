"""Several quantizers on one graph: torchao's `ComposableQuantizer`, and tools that only read annotations."""

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from helpers.models import signal_to_noise
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.prepare import _get_edge_or_node_to_qspec
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import (
    ComposableQuantizer,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from coreml_quantizer import ActivationConfig, CoreMLQuantizer, LayerConfig, QuantizerConfig, QuantizerError

W8A8 = LayerConfig(activation=ActivationConfig())
X = torch.linspace(-2, 2, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16).sin()
NAMES = ("enter", "middle", "leave")


class Network(nn.Module):
    """Layers whose values are copied, concatenated and viewed on the way to the next one."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8) if norm is None else norm
        self.middle, self.leave = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.enter(x)))
        y = self.middle(y.mean((2, 3)))
        y = torch.cat([y, torch.sigmoid(y)], 0).reshape(-1, 8)
        return torch.softmax(self.leave(y), -1)


def exported() -> GraphModule:
    return torch.export.export(Network().eval(), (X,)).module()


def quantizing(names: Sequence[str]) -> CoreMLQuantizer:
    return CoreMLQuantizer(QuantizerConfig(None, modules=dict.fromkeys(names, W8A8)))


def xnnpack() -> XNNPACKQuantizer:
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))


def prepared(quantizer: Quantizer, prepare: Callable[[GraphModule, Quantizer], GraphModule]) -> GraphModule:
    graph = prepare(exported(), quantizer)
    for scale in (1.0, 0.5):
        graph(X * scale)
    return graph


def operators(graph: GraphModule) -> Counter[str]:
    return Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_function")


PARTS = [[("enter",), ("middle", "leave")], [("leave",), ("middle",), ("enter",)], [("middle",), ("enter", "leave")]]
PREPARE = [prepare_pt2e, prepare_qat_pt2e]


@pytest.mark.parametrize("prepare", PREPARE)
@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_several_configurations_are_one(parts: list[tuple[str, ...]], prepare: Callable[..., GraphModule]) -> None:
    alone = convert_pt2e(prepared(quantizing(NAMES), prepare))
    composed = convert_pt2e(prepared(ComposableQuantizer([quantizing(names) for names in parts]), prepare))
    assert operators(composed) == operators(alone)
    assert torch.equal(composed(X), alone(X))


@pytest.mark.parametrize("prepare", PREPARE)
@pytest.mark.parametrize("config", [None, "w4_block32"], ids=str)
def test_one_in_a_composition_is_as_alone(config: object, prepare: Callable[..., GraphModule]) -> None:
    alone = convert_pt2e(prepared(CoreMLQuantizer(config), prepare))
    composed = convert_pt2e(prepared(ComposableQuantizer([CoreMLQuantizer(config)]), prepare))
    assert operators(composed) == operators(alone)
    assert torch.equal(composed(X), alone(X))


def test_the_first_one_wins_and_the_report_says_so() -> None:
    general, special = CoreMLQuantizer(), quantizing(("leave",))
    graph = prepared(ComposableQuantizer([special, general]), prepare_pt2e)
    decisions = {decision.node: decision for decision in general.report(graph).decisions}
    assert [decision.outcome for decision in decisions.values() if decision.weights] == ["quantized"] * 3
    assert decisions["linear_1"].entry == "module_name leave"
    assert decisions["linear"].entry == "global"


@pytest.mark.parametrize(("ours_first", "prepare"), [(True, prepare_pt2e), (False, prepare_qat_pt2e)])
def test_beside_a_quantizer_of_another_backend(ours_first: bool, prepare: Callable[..., GraphModule]) -> None:
    model = Network(nn.Identity()).eval()  # torchao takes half a minute for batch norms that others train
    quantizers = [quantizing(("enter",)), xnnpack()]
    graph = prepare(
        torch.export.export(model, (X,)).module(), ComposableQuantizer(quantizers[:: 1 if ours_first else -1])
    )
    graph(X)
    bias = graph.get_parameter("leave.bias")
    assert torch.equal(bias, model.leave.bias), "what XNNPACK reads is not rounded to float16"
    converted = convert_pt2e(graph)
    found = operators(converted)
    assert found["quantized_decomposed.dequantize_per_channel.default"] == 3, "the weights of all layers"
    assert signal_to_noise(model(X), converted(X)) > 25


def test_the_first_one_steps_for_all() -> None:
    parts = [quantizing(("enter",)), quantizing(("middle",))]
    prepared(ComposableQuantizer(parts), prepare_qat_pt2e)
    parts[0].step()
    with pytest.raises(QuantizerError, match="the first one steps for all"):
        parts[1].step()


def test_a_graph_is_prepared_anew_after_another_preparation() -> None:
    graph = exported()
    quantizing(("enter",)).annotate(graph)
    again = prepare_pt2e(graph, quantizing(("leave",)))
    again(X)
    assert operators(convert_pt2e(again))["quantized_decomposed.dequantize_per_channel.default"] == 1


CONFIGS = [None, "w8", {"global_config": {}}, {"global_config": {"quantization_scheme": "affine"}}]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_annotations_can_be_read_without_torchao_s_insertion(config: object) -> None:
    """As NNCF reads them: common specs only, on edges of the graph, and a graph that still runs."""
    quantizer, graph = CoreMLQuantizer(config), exported()
    graph = quantizer.transform_for_annotation(graph)
    quantizer.annotate(graph)
    specs = _get_edge_or_node_to_qspec(graph)
    edges = [edge for edge in specs if isinstance(edge, tuple)]
    assert all(node in user.all_input_nodes for node, user in edges)
    assert edges
    for place, spec in specs.items():
        assert isinstance(spec, QuantizationSpec | SharedQuantizationSpec), spec
        if isinstance(place, Node) and place.op == "output":
            assert not place.users, "nothing reads it, so nothing is quantized for it"
    graph.recompile()
    assert signal_to_noise(Network().eval()(X), graph(X)) > 100
