"""The placement report: outcomes, entries, reasons, costs, and configuration without effect."""

import builtins
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import CoreMLQuantizer, LayerConfig, QuantizerConfig, QuantizerError, Skip, WeightConfig, presets
from coreml_quantizer.reporting import Report
from coreml_quantizer.reporting.tables import plain


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.act = nn.ReLU()
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 5, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 2, groups=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.act(self.conv(x))
        return self.head(self.norm(y)), self.up(y).sigmoid()


IMAGE = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)
CONV, HEAD, UP = 2 * 8 * 6 * 6 * 27, 2 * 8 * 6 * 5 * 6, 2 * 8 * 6 * 6 * 2 * 2 * 2
BYTES = {"conv": 4 * 216, "head": 4 * 30, "up": 4 * 64}
WEIGHTS = LayerConfig(activation=None)
OTHERS = 4 * (8 + 6 + 6 + 4)


def prepare(config: object, model: nn.Module | None = None) -> tuple[CoreMLQuantizer, GraphModule]:
    quantizer = CoreMLQuantizer(config)
    graph = torch.export.export((model or Model()).eval(), IMAGE).module()
    return quantizer, prepare_pt2e(graph, quantizer)


def report(config: object = None) -> Report:
    quantizer, prepared = prepare(config)
    return quantizer.report(prepared)


def test_every_operator_has_an_outcome_an_entry_and_a_reason() -> None:
    found = {decision.op: decision for decision in report().decisions}
    assert found["aten.conv2d"].outcome == "quantized"
    assert found["aten.conv2d"].weights == ("conv.weight",)
    assert found["aten.conv2d"].entry == "global"
    assert found["aten.layer_norm"].outcome == "float"
    assert "eight bits" in found["aten.layer_norm"].reason
    assert found["aten.linear"].module == "head"
    assert all(decision.reason for decision in found.values())


def test_costs_are_counted() -> None:
    found = report()
    assert (found.macs.quantized, found.macs.total) == (CONV + HEAD + UP, CONV + HEAD + UP)
    assert found.weight_bytes.quantized == sum(BYTES.values())
    assert found.weight_bytes.total == sum(BYTES.values()) + OTHERS
    found = report(QuantizerConfig(modules={"head": None, "conv": LayerConfig(activation=None)}))
    assert (found.macs.quantized, found.macs.total) == (UP, CONV + HEAD + UP)
    assert found.weight_bytes.quantized == BYTES["conv"] + BYTES["up"]
    assert report(QuantizerConfig(None)).macs.fraction == 0.0


def test_products_of_float_inputs_are_not_counted_as_quantized() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    rows = 2 * 3 * 8
    for config, quantized in ((None, 4 * 8 + 2 * 4), (QuantizerConfig(inputs="float"), 2 * 4)):
        quantizer, prepared = prepare(config, model)
        assert quantizer.report(prepared).macs.quantized == rows * quantized


def test_products_are_counted() -> None:
    class Products(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = nn.functional.scaled_dot_product_attention(x, x[:, :, :4], x[:, :, :4])
            return torch.einsum("abij,abkj->ik", x, y) @ torch.ones(8, 7)

    quantizer, prepared = prepare(None, Products())
    attention = 2 * (2 * 3 * 8 * 4 * 8)
    assert quantizer.report(prepared).macs.total == attention + 2 * 3 * 8 * 8 * 8 + 8 * 8 * 7


def test_branches_are_counted() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, self.linear, lambda y: self.linear(-y), (x,)) + self.linear(x)

    quantizer, prepared = prepare(None, Branches())
    found = quantizer.report(prepared).macs
    assert (found.quantized, found.total) == (48 * 32, 3 * 48 * 32)


def test_a_model_without_operators_has_a_report() -> None:
    quantizer, prepared = prepare(None, nn.Identity())
    assert repr(quantizer.report(prepared)).startswith("<Report: no operators; 0.0% of 0 multiply-adds")


def test_ellipses_are_counted() -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("...ij, ...jk -> ...ik", x, x[:, :1, :, :4])

    quantizer, prepared = prepare(None, Product())
    assert quantizer.report(prepared).macs.total == 2 * 3 * 8 * 8 * 4


def test_recurrent_layers_are_counted() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 5, num_layers=2, bidirectional=True, batch_first=True)
            self.gru = nn.GRU(10, 3)
            self.first = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.gru(self.lstm(self.first(x[:, 0]))[0])[0]

    quantizer, prepared = prepare(None, Recurrent())
    lstm = 2 * 4 * 5 * ((8 + 5) + (10 + 5))
    found = quantizer.report(prepared)
    assert found.macs.total == 2 * 8 * (64 + lstm + 3 * 3 * (10 + 3))
    assert found.macs.quantized == 2 * 8 * 64
    assert found.weight_bytes.quantized == 4 * (64 + lstm + 3 * 3 * (10 + 3))


def test_cells_and_general_convolutions_are_counted() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.gru = nn.LSTMCell(8, 5), nn.GRUCell(5, 3)
            self.kernel = nn.Parameter(torch.ones(3, 2, 3, 3))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            up = torch.convolution(x, self.kernel, None, [1, 1], [0, 0], [1, 1], True, [0, 0], 1)
            return self.gru(self.lstm(x[:, 0, 0])[0]), up

    quantizer, prepared = prepare(None, Steps())
    cells = 2 * (4 * 5 * (8 + 5) + 3 * 3 * (5 + 3))
    assert quantizer.report(prepared).macs.total == cells + 2 * 3 * 8 * 8 * 2 * 9


def test_tied_weights_are_counted_once_and_unread_ones_not_at_all() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.unread = (nn.Linear(8, 8, bias=False) for _ in range(3))
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    quantizer, prepared = prepare(None, Tied())
    found = quantizer.report(prepared).weight_bytes
    assert (found.quantized, found.total) == (4 * 64, 4 * 64)


def test_text_and_json_say_the_same(tmp_path: Path) -> None:
    found = report(QuantizerConfig(modules={"head": None}))
    text, path = found.to_text(), tmp_path / "report.json"
    loaded = json.loads(found.to_json(path))
    assert loaded == json.loads(path.read_text()) == found.to_dict()
    assert f"{found.macs.total:,} multiply-adds" in text
    assert loaded["summary"]["macs"]["total"] == found.macs.total
    for operator in loaded["operators"]:
        assert operator["node"] in found.to_text(everything=True)
    assert "module_name head" in text
    assert len(str(found)) == len(text)
    assert repr(found).count("\n") == 0


def test_the_table_needs_no_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without_rich(name: str, *arguments: object, **keywords: object) -> object:
        if name.startswith("rich"):
            raise ImportError(name)
        return importing(name, *arguments, **keywords)

    found = report()
    monkeypatch.setattr(builtins, "__import__", without_rich)
    text = found.to_text()
    assert text.splitlines()[0].split() == ["node", "operator", "module", "outcome", "by", "why"]
    assert plain(("a", "b"), [("xx", "y")]) == "a   b\n--  -\nxx  y"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (QuantizerConfig(modules={"norm": LayerConfig()}), ["'module_name norm'", "eight bits"]),
        (QuantizerConfig(types={"LayerNorm": None}), ["'module_type LayerNorm'", "floating point anyway"]),
        (
            QuantizerConfig(modules={"conv": None}, types={nn.Conv2d: None}),
            ["Conv2d' changes nothing", "other entries"],
        ),
        (QuantizerConfig(skip=Skip(ops=("aten.layer_norm",))), ["'skip op aten.layer_norm'", "anyway"]),
        (QuantizerConfig(None, first_layer="float"), ["'first_layer'", "quantizes no such layer"]),
        (QuantizerConfig(WEIGHTS, first_layer="weight_only"), ["'first_layer'", "no activations"]),
        (QuantizerConfig(WEIGHTS, inputs="float"), ["'inputs' changes nothing", "no activations"]),
        (QuantizerConfig(WEIGHTS, outputs="float"), ["'outputs' changes nothing", "no activations"]),
        (QuantizerConfig(WEIGHTS, known_ranges="fixed"), ["'known_ranges'", "no activations"]),
        (
            QuantizerConfig(known_ranges="fixed", skip=Skip(ops=("aten.sigmoid",))),
            ["'known_ranges' changes nothing", "a known range"],
        ),
        ({"global_config": {}, "module_type_configs": {"LayerNorm": None}}, ["LayerNorm", "anyway"]),
        (
            QuantizerConfig(LayerConfig(WeightConfig(block_size=32), None)),
            ["block_size=32", "'conv_weight'", "channel"],
        ),
    ],
    ids=[
        "float rule",
        "none",
        "shadowed",
        "skip",
        "first",
        "weights",
        "in",
        "out",
        "fixed",
        "range",
        "linear",
        "block",
    ],
)
def test_entries_without_effect_are_warnings(config: object, words: list[str]) -> None:
    found = report(config)
    assert all(any(word in warning for warning in found.warnings) for word in words), found.warnings
    assert f"Warning: {found.warnings[0]}" in found.to_text()


@pytest.mark.parametrize(
    "config",
    [
        None,
        QuantizerConfig(
            modules={"head": None}, types={"ConvTranspose2d": LayerConfig(activation=None)}, first_layer="weight_only"
        ),
        QuantizerConfig(ops={"aten.relu": WEIGHTS}, inputs="float", outputs="float"),
        QuantizerConfig(known_ranges="fixed"),
    ],
    ids=["default", "effective", "activations", "fixed"],
)
def test_entries_with_effect_are_no_warnings(config: object) -> None:
    assert report(config).warnings == ()


def test_a_type_that_folding_removed_is_a_warning() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    config = {"global_config": {}, "module_type_configs": {"BatchNorm2d": None}}
    quantizer, prepared = prepare(config, model)
    (warning,) = quantizer.report(prepared).warnings
    assert "BatchNorm2d' changes nothing" in warning


def test_other_graphs_are_refused() -> None:
    quantizer, prepared = prepare(None)
    prepared(*IMAGE)
    for graph in (convert_pt2e(prepared), prepared):
        with pytest.raises(QuantizerError, match="converted already"):
            quantizer.report(graph)
    with pytest.raises(QuantizerError, match="no record"):
        quantizer.report(torch.export.export(Model().eval(), IMAGE).module())
    with pytest.raises(QuantizerError, match="not of Model"):
        quantizer.report(Model())


class Deep(nn.Module):
    """A layer whose path is long."""

    def __init__(self) -> None:
        super().__init__()
        inner: nn.Module = nn.Linear(8, 8)
        for name in ("projection", "attention_output_dense", "feed_forward_network", "transformer_decoder_layer_0"):
            inner = nn.Sequential(OrderedDict([(f"{name}_of_the_language_model", inner)]))
        self.encoder, self.head = inner, nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).relu()).softmax(-1)


def test_names_are_not_broken_and_modules_are_summed_up() -> None:
    quantizer = CoreMLQuantizer(presets.w8a8())
    prepared = prepare_pt2e(torch.export.export(Deep().eval(), (torch.randn(2, 8),)).module(), quantizer)
    report = quantizer.report(prepared)
    lines = report.to_text().splitlines()
    (long,) = {decision.module for decision in report.decisions if decision.module.startswith("encoder.")}
    assert any(long in line for line in lines)
    modules = report.to_dict()["summary"]["modules"]
    assert modules["head"] == {"quantized": 1}
    assert sum(sum(counts.values()) for counts in modules.values()) == len(report.decisions)
    assert any(line.split()[1:3] == ["head", "│"] and "1" in line for line in lines)
