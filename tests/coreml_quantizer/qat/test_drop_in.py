"""`LinearQuantizer` in the place of coremltools': what scripts read, set and call."""

import copy
import json
import math

import pytest
import torch
from coremltools.optimize.torch.quantization import LinearQuantizer as StockQuantizer
from coremltools.optimize.torch.quantization import LinearQuantizerConfig
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

import partitioner
from coreml_quantizer import CoreMLQuantizer, LinearQuantizer, presets
from partitioner.stock import MULTIMETHOD_WEIGHT_SHARING_STRATEGY

EXAMPLE = torch.linspace(-2, 2, 2 * 3 * 64).reshape(2, 3, 8, 8).sin()


class Branching(nn.Module):
    """A module that neither torch.fx nor torch.export can trace; it returns one tensor, a tuple or a dict."""

    def __init__(self, kind: str = "tensor") -> None:
        super().__init__()
        self.kind, self.inner, self.drop = kind, nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x: Tensor, scale: float = 1.0, *, offset: Tensor | None = None) -> object:
        y = self.drop(self.inner(x if x.sum() > 0 else -x) * scale)
        y = y if offset is None else y + offset
        return {"tensor": y, "tuple": (y, 3, x), "dict": {"b": y, "a": [x, None]}}[self.kind]


class Network(nn.Module):
    def __init__(self, kind: str = "tensor") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.odd = nn.ModuleList([Branching(kind)])
        self.leave = nn.Linear(8, 4)
        self.kind, self.labels = kind, ["cat", "dog"]

    def describe(self) -> str:
        return f"{len(self.labels)} labels"

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.enter(x))).mean((2, 3))
        found = self.odd[0](y, 2.0, offset=y)
        y = {"tensor": lambda: found, "tuple": lambda: found[0] + found[2], "dict": lambda: found["b"] + found["a"][0]}[
            self.kind
        ]()
        result: Tensor = self.leave(y)
        return result


FIELDS = {"non_traceable_module_names": ["odd.0", "missing"], "preserved_attributes": ["labels", "describe", "none"]}


@pytest.mark.filterwarnings("error::coreml_quantizer.QuantizerWarning")
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict"])
def test_modules_that_cannot_be_traced_stay_whole(kind: str, inplace: bool) -> None:
    model = Network(kind)
    quantizer = LinearQuantizer(model, LinearQuantizerConfig(**FIELDS))
    prepared = quantizer.prepare((EXAMPLE,), inplace=inplace)
    assert isinstance(model.odd[0], Branching), "the model is as it was"
    assert (prepared.get_submodule("odd.0") is model.odd[0]) is inplace
    calls = [node for node in prepared.graph.nodes if node.op == "call_module" and node.target == "odd.0"]
    assert len(calls) == 1
    for batch in (EXAMPLE, torch.cat([EXAMPLE, -EXAMPLE, EXAMPLE])):
        prepared(batch).square().mean().backward()
        quantizer.step()
    assert prepared.get_parameter("odd.0.inner.weight").grad is not None
    finalized = quantizer.finalize()
    inner = finalized.get_submodule("odd.0")
    assert torch.equal(inner.inner.weight, prepared.get_parameter("odd.0.inner.weight")), "floating point"
    assert not inner.training
    reference = Network(kind).eval()
    reference.load_state_dict({k: v for k, v in prepared.state_dict().items() if k in reference.state_dict()})
    assert torch.allclose(finalized(EXAMPLE), reference(EXAMPLE), atol=0.1)
    assert not torch.equal(finalized(EXAMPLE), reference(EXAMPLE))


def test_inside_of_whole_modules_the_mode_is_followed() -> None:
    prepared = LinearQuantizer(Network(), FIELDS).prepare((EXAMPLE,))
    prepared(EXAMPLE)
    assert not torch.equal(prepared(EXAMPLE), prepared(EXAMPLE)), "its dropout drops"
    prepared.eval()
    assert torch.equal(prepared(EXAMPLE), prepared(EXAMPLE))


def test_preserved_attributes_stay_through_copies() -> None:
    quantizer = LinearQuantizer(Network(), FIELDS)
    prepared = quantizer.prepare((EXAMPLE,))
    prepared(EXAMPLE)
    for graph in (prepared, copy.deepcopy(prepared), quantizer.finalize(), copy.deepcopy(quantizer.finalize())):
        assert graph.labels == ["cat", "dog"]
        assert graph.describe() == "2 labels"
        assert not hasattr(graph, "none")


def test_supported_modules_are_those_of_coremltools() -> None:
    assert LinearQuantizer(nn.Linear(2, 2)).supported_modules == StockQuantizer(nn.Linear(2, 2)).supported_modules


def plain_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))


def test_without_a_configuration_it_is_symmetric_as_coremltools() -> None:
    default, explicit = LinearQuantizer(plain_network()), LinearQuantizer(plain_network(), LinearQuantizerConfig())
    rows = []
    for quantizer in (default, explicit):
        quantizer.prepare((EXAMPLE,))(EXAMPLE)
        rows.append(quantizer.report())
    assert repr(rows[0]) == repr(rows[1])
    weights = [row for row in rows[0].values() if row["type"] == "weight"]
    assert {(row["qscheme"], row["dtype"], row["per_channel"]) for row in weights} == {("symmetric", torch.int8, True)}
    assert next(row for row in rows[0].values() if row["type"] == "activation")["qscheme"] == "symmetric"


@pytest.mark.parametrize("fields", [{}, {"quantization_scheme": "affine"}, {"weight_per_channel": False}], ids=str)
def test_the_report_has_the_columns_and_errors_of_coremltools(fields: dict[str, object]) -> None:
    config = LinearQuantizerConfig.from_dict({"global_config": fields})
    ours, stock = LinearQuantizer(plain_network(), config), StockQuantizer(plain_network(), config)
    for quantizer in (ours, stock):
        quantizer.prepare((EXAMPLE,)).eval()(EXAMPLE)
    found, expected = ours.report(), stock.report()
    assert {tuple(row) for row in found.values()} == {tuple(next(iter(expected.values())))}
    for name in ("0", "4"):
        for column in ("type", "device", "algorithm", "qscheme", "per_channel", "qmin", "qmax", "#params"):
            assert found[name][column] == expected[name][column], (name, column)
    assert found["4"]["error"] == pytest.approx(expected["4"]["error"], rel=0.01)
    assert all(math.isnan(row["error"]) for row in found.values() if row["type"] == "activation")
    assert repr(found).split()[: len(next(iter(expected.values()))) + 1] == ["name", *next(iter(expected.values()))]
    assert json.loads(found.to_json())["operators"]


def test_the_sharing_strategy_is_importable() -> None:
    assert partitioner.MULTIMETHOD_WEIGHT_SHARING_STRATEGY is MULTIMETHOD_WEIGHT_SHARING_STRATEGY


def converted(way: str) -> GraphModule:
    if way == "finalize":
        quantizer = LinearQuantizer(plain_network(), presets.w8a8())
        quantizer.prepare((EXAMPLE,))(EXAMPLE)
        return quantizer.finalize()
    prepare = {"prepare_pt2e": prepare_pt2e, "prepare_qat_pt2e": prepare_qat_pt2e}[way]
    graph = prepare(torch.export.export(plain_network().eval(), (EXAMPLE,)).module(), CoreMLQuantizer())
    graph(EXAMPLE)
    return convert_pt2e(graph)


@pytest.mark.parametrize("way", ["finalize", "prepare_pt2e", "prepare_qat_pt2e"])
def test_converted_models_answer_eval(way: str) -> None:
    graph = converted(way)
    expected = graph(EXAMPLE)
    assert graph.eval() is graph
    assert graph.train(False) is graph
    assert torch.equal(graph(EXAMPLE), expected)
    assert torch.equal(copy.deepcopy(graph).eval()(EXAMPLE), expected)


def test_converted_models_still_refuse_to_train() -> None:
    with pytest.raises(NotImplementedError, match="LinearQuantizer"):
        converted("prepare_pt2e").train()
