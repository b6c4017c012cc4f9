"""At the very places that ExecuTorch's own quantizer chooses, ours is at least as accurate."""

from collections.abc import Callable

import models
import pytest
import torch
from coremltools.optimize.torch.quantization import LinearQuantizerConfig, ModuleLinearQuantizerConfig
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, Quantizer
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from coreml_quantizer import CoreMLQuantizer, rules, training
from coreml_quantizer.annotator import Placement
from coreml_quantizer.operands import operand
from coreml_quantizer.places import Places
from coreml_quantizer.sharing import SharingGroups

CONFIG = LinearQuantizerConfig(global_config=ModuleLinearQuantizerConfig(quantization_scheme="symmetric"))


def stock_quantizer() -> Quantizer:
    from executorch.backends.apple.coreml.quantizer import CoreMLQuantizer as StockQuantizer

    return StockQuantizer(CONFIG)


class AtStockPlaces(CoreMLQuantizer):
    """Ours, with observers only where the stock quantizer has them."""

    def annotate(self, model: GraphModule) -> GraphModule:
        stock_quantizer().annotate(model)
        nodes = list(model.graph.nodes)
        wanted: dict = {node: node.meta.pop(Q_ANNOTATION_KEY, None) for node in nodes}
        spec = self._policy.default
        places = Places(SharingGroups({node: index for index, node in enumerate(nodes)}))
        for node in nodes:
            rule = rules.lookup(node)
            if rule is not None:
                places.ranges[node] = rule.range_of(node)
            found: QuantizationAnnotation | None = wanted[node]
            if found is None:
                continue
            axis = 0 if rule is None or rule.weight is None else rule.weight.channel_axis
            for source, stock_spec in found.input_qspec_map.items():
                if stock_spec is None:
                    continue
                if rule is not None and rule.weight is not None and source is operand(node, rule.weight.position):
                    places.weight(source, node, spec.weight.along(axis))
                else:
                    places.edge(source, node, spec.input)
            if found.output_qspec is not None:
                places.output(node, spec.output)
        places.annotate(nodes)
        self._placement = Placement(tuple(places.weights), frozenset(places.sources))
        training.plant(model)
        return model


def residual() -> tuple[nn.Module, tuple[Tensor, ...]]:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
            self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Hardswish())
            self.gate = nn.Sequential(nn.Conv2d(16, 16, 1), nn.Sigmoid())
            self.head = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            y = y + self.body(y)
            return self.head((y * self.gate(y)).mean((2, 3)))

    inputs = (torch.randn(4, 3, 16, 16),)
    return models.settle(Residual(), inputs), inputs


def plain() -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 16, 3, groups=16),
        nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 32, 1), nn.Flatten(), nn.Linear(800, 10),
    )  # fmt: skip
    inputs = (torch.randn(4, 3, 16, 16),)
    return models.settle(model, inputs), inputs


def perceptron() -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8))
    return model.eval(), (torch.randn(64, 32),)


def fidelity(model: nn.Module, inputs: tuple[Tensor, ...], quantizer: Quantizer) -> float:
    generator = torch.Generator().manual_seed(1)
    batches = [tuple(torch.randn(x.shape, generator=generator) for x in inputs) for _ in range(40)]
    with torch.no_grad():
        prepared = prepare_pt2e(torch.export.export(model, inputs).module(), quantizer)
        for batch in batches[:20]:
            prepared(*batch)
        converted = convert_pt2e(prepared)
        expected, found = (torch.cat([graph(*batch) for batch in batches[20:]]) for graph in (model, converted))
    return models.signal_to_noise(expected, found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        residual,
        plain,
        pytest.param(
            perceptron,
            marks=pytest.mark.xfail(
                reason="28.82 against 28.99 dB: the fixed range of tanh, which coremltools prescribes and the stock "
                "quantizer drops, costs 0.15 dB where values do not fill it, and float16 scales cost 0.02 dB"
            ),
        ),
    ],
    ids=lambda make: make.__name__,
)
def test_at_the_places_of_the_stock_quantizer_ours_is_no_worse(
    make: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]],
) -> None:
    torch.manual_seed(0)
    model, inputs = make()
    assert fidelity(model, inputs, AtStockPlaces(CONFIG)) >= fidelity(model, inputs, stock_quantizer())
