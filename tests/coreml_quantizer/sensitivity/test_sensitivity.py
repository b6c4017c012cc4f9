"""Sensitivity analysis, against graphs that are configured to quantize just what it switches on."""

import json
import math
from collections.abc import Mapping

import pytest
import torch
from helpers.models import build
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import (
    ActivationConfig,
    CalibrationError,
    CoreMLQuantizer,
    LayerConfig,
    QuantizerConfig,
    QuantizerError,
    ScopeError,
    Skip,
    analyze_sensitivity,
    calibrate,
    presets,
)

WEIGHT_ONLY = LayerConfig(activation=None)


class Gate(nn.Module):
    """Layers of which one has weights that an integer grid per channel cannot represent, inside of a block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter = nn.Linear(16, 16)
        self.block = nn.ModuleDict({"even": nn.Linear(16, 16), "spread": nn.Linear(16, 16)})
        self.leave = nn.Linear(16, 4)
        with torch.no_grad():
            self.block["spread"].weight[:, 3] = 60.0

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        # The large column meets a constant zero, so that it costs resolution and adds nothing.
        x = self.block["spread"](x * (torch.arange(16) != 3)) + self.block["even"](x)
        return self.leave(x)


X = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))


def calibrated(model: nn.Module, inputs: tuple[Tensor, ...], config: object) -> GraphModule:
    graph = prepare_pt2e(torch.export.export(model.eval(), inputs).module(), CoreMLQuantizer(config))
    calibrate(graph, [inputs])
    return graph


def sqnr(wanted: Tensor, got: Tensor) -> float:
    wanted, got = wanted.double(), got.double()
    return 10 * math.log10(float(wanted.square().sum()) / float((wanted - got).square().sum()))


def score_of(converted: GraphModule, model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """SQNR against the model with nothing but its constants rounded, to float16."""
    return sqnr(run(calibrated(model, inputs, QuantizerConfig(None)), inputs), run(converted, inputs))


def configured(model: nn.Module, inputs: tuple[Tensor, ...], config: QuantizerConfig) -> float:
    return score_of(convert_pt2e(calibrated(model, inputs, config)), model, inputs)


def run(graph: GraphModule, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        output: Tensor = graph(*inputs)
    return output


@pytest.mark.parametrize("preset", ["w8a8", "w4_block32", "lut4"])
@pytest.mark.parametrize("name", ["bert", "resnet"])
def test_everything_on_is_the_converted_graph(name: str, preset: str) -> None:
    model, inputs = build(name)
    graph = calibrated(model, inputs, preset)
    before = run(graph, inputs)
    found = analyze_sensitivity(graph, [inputs], modules=[])
    assert torch.equal(run(graph, inputs), before)
    assert found.float_score == math.inf
    assert found.quantized_score == score_of(convert_pt2e(graph), model, inputs)


@pytest.mark.parametrize("name", ["bert", "resnet"])
def test_switching_is_configuring(name: str) -> None:
    """Weights have no places in common: one module quantized is exactly the graph configured to quantize that one."""
    model, inputs = build(name)
    graph = calibrated(model, inputs, QuantizerConfig(WEIGHT_ONLY))
    only = {found.module: found.score for found in analyze_sensitivity(graph, [inputs]).modules}
    all_but = {found.module: found.score for found in analyze_sensitivity(graph, [inputs], mode="all_but").modules}
    assert only.keys() == all_but.keys()
    for path in list(only)[::8]:
        alone: Mapping[str, LayerConfig | None] = {path: WEIGHT_ONLY}
        skipping = QuantizerConfig(WEIGHT_ONLY, skip=Skip(modules=(path,)))
        assert only[path] == configured(model, inputs, QuantizerConfig(None, modules=alone))
        assert all_but[path] == configured(model, inputs, skipping)


@pytest.mark.parametrize("mode", ["only", "all_but"])
@pytest.mark.parametrize("config", [WEIGHT_ONLY, LayerConfig(activation=ActivationConfig())], ids=["w8", "w8a8"])
def test_the_layer_with_the_bad_weights_is_found(config: LayerConfig, mode: str) -> None:
    graph = calibrated(Gate(), (X,), QuantizerConfig(config))
    found = analyze_sensitivity(graph, [X], mode=mode)  # type: ignore[arg-type]
    assert found.most_sensitive(1) == ("block.spread",)
    scores = [entry.score for entry in found.modules]
    assert scores == sorted(scores, reverse=mode == "all_but")
    skipping = QuantizerConfig(config, skip=Skip(modules=found.most_sensitive(1)))
    assert configured(Gate(), (X,), skipping) > found.quantized_score + 10


def test_a_module_is_measured_with_everything_inside() -> None:
    graph = calibrated(Gate(), (X,), QuantizerConfig(WEIGHT_ONLY))
    found = analyze_sensitivity(graph, [X], modules=["enter", "block", "block.spread"])
    block = next(entry for entry in found.modules if entry.module == "block")
    assert block.score == configured(Gate(), (X,), QuantizerConfig(None, modules={"block": WEIGHT_ONLY}))
    assert len(found.most_sensitive(3)) == 2, "one of the block and of what is in it is enough"
    assert found.most_sensitive(0) == ()
    with pytest.raises(ValueError, match="count=-1"):
        found.most_sensitive(-1)


class Encoder(nn.Module):
    """Blocks with operators of their own around layers, and dropouts between, as transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"dense": nn.Linear(16, 16), "dropout": nn.Dropout(0.1), "again": nn.Dropout(0.1)})
            for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block["again"](block["dropout"](block["dense"](x)))
        return x


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(torch.sigmoid(self.encoder(x)))
        return result


@pytest.mark.parametrize("mode", ["only", "all_but"])
@pytest.mark.parametrize("preset", ["w8a8", "w4_block32"])
def test_leaves_are_named_and_dropouts_count_with_what_they_read(preset: str, mode: str) -> None:
    found = analyze_sensitivity(calibrated(Outer(), (X,), preset), [X], mode=mode)  # type: ignore[arg-type]
    measured = {entry.module for entry in found.modules}
    layers = {"encoder.blocks.0.dense", "encoder.blocks.1.dense", "encoder.blocks.2.dense", "head"}
    assert not any("dropout" in path or "again" in path for path in measured)
    assert measured == (layers | {"encoder"} if preset == "w8a8" else layers)
    for count in range(6):
        assert len(found.most_sensitive(count)) == min(count, 4)
        assert set(found.most_sensitive(count)) <= layers
    if preset == "w8a8" and mode == "only":
        assert "encoder" in found.most_sensitive(2, containers=True)


def test_a_score_of_ones_own() -> None:
    graph = calibrated(Gate(), (X,), "w8")
    wanted = run(calibrated(Gate(), (X,), QuantizerConfig(None)), (X,))
    calls = []

    def score(model: GraphModule) -> float:
        calls.append(model)
        return -float((model(X) - wanted).abs().max())

    found = analyze_sensitivity(graph, evaluate=score)
    assert found.metric == "score"
    assert found.float_score == 0
    assert found.quantized_score == -float((run(convert_pt2e(graph), (X,)) - wanted).abs().max())
    assert len(calls) == 2 + len(found.modules)


def test_mutable_buffers_start_anew_each_time() -> None:
    class Running(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(16, 16)
            self.register_buffer("total", torch.zeros(8, 16))

        def forward(self, x: Tensor) -> Tensor:
            self.total.add_(self.layer(x))
            return self.total * 1.0

    graph = calibrated(Running(), (X,), "w8")
    before = {name: value.clone() for name, value in graph.named_buffers()}
    first, second = (analyze_sensitivity(graph, [X, X]) for _ in range(2))
    assert first == second
    assert first.modules[0].score == pytest.approx(first.quantized_score)
    assert all(torch.equal(value, before[name]) for name, value in graph.named_buffers())


def test_the_result_in_words_and_as_json() -> None:
    found = analyze_sensitivity(calibrated(Gate(), (X,), "w8"), [X], max_batches=1)
    read = json.loads(found.to_json())
    assert read["float_score"] is None
    assert read["quantized_score"] == found.quantized_score
    assert [entry["module"] for entry in read["modules"]] == [entry.module for entry in found.modules]
    text = found.to_text()
    assert all(entry.module in text and f"{entry.score:.2f}" in text for entry in found.modules)
    assert f"{found.quantized_score:.2f}" in text


def test_what_cannot_be_analyzed_is_refused() -> None:
    graph = calibrated(Gate(), (X,), "w8")
    with pytest.raises(ScopeError, match=r"nothing in 'block.sprea' is quantized. Did you mean 'block.spread'"):
        analyze_sensitivity(graph, [X], modules=["block.sprea"])
    with pytest.raises(ValueError, match="either batches"):
        analyze_sensitivity(graph)
    with pytest.raises(ValueError, match="mode='one'"):
        analyze_sensitivity(graph, [X], mode="one")  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="no batches"):
        analyze_sensitivity(graph, [])
    with pytest.raises(CalibrationError, match="Batch 1, a tuple of 2, is not what the model takes"):
        analyze_sensitivity(graph, [X, (X, X)])
    with pytest.raises(QuantizerError, match="prepare_pt2e"):
        analyze_sensitivity(convert_pt2e(graph), [X])
    fresh = prepare_pt2e(torch.export.export(Gate().eval(), (X,)).module(), CoreMLQuantizer(presets.w8a8()))
    with pytest.raises(CalibrationError, match="never observed"):
        analyze_sensitivity(fresh, [X])
