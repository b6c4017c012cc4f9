"""`QuantizerConfig`: round trips, precedence, ends of the model, and what is refused."""

import dataclasses
import pickle
import re
from pathlib import Path

import pytest
import torch
from helpers import named_network as networks
from helpers.graphs import QDQ, ROWS, call, calls, is_dequantized, is_float_output, prepare
from helpers.named_network import Block
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import (
    ActivationConfig,
    ConfigError,
    CoreMLQuantizer,
    EstimatorConfig,
    LayerConfig,
    QuantizerConfig,
    ScopeError,
    Skip,
    WeightConfig,
    presets,
)
from coreml_quantizer.estimators import ESTIMATORS

aten = torch.ops.aten
W8 = LayerConfig(WeightConfig(), None)


class Model(networks.Model):
    """With a view behind the last layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten()


def linears(config: object) -> list[tuple[bool, bool, bool]]:
    """(input, weight, output quantized) of first.inner, second.inner and head."""
    prepared = prepare(Model(), ROWS, config)
    prepared(*ROWS)
    converted = convert_pt2e(prepared)
    return [
        (is_dequantized(node.args[0]), is_dequantized(node.args[1]), not is_float_output(node))
        for node in calls(converted, aten.linear)
    ]


# What an activation behind a fused linear layer writes is seen on the activation, not on the linear layer.
FULL, FUSED, FLOAT, WEIGHT = (True, True, True), (True, True, False), (False, False, False), (False, True, False)
# The head reads what the addition before it wrote.
READS, READS_AND_WEIGHT = (True, False, False), (True, True, False)

weights = st.one_of(
    st.builds(
        WeightConfig,
        dtype=st.sampled_from(["int8", "uint8", "int4", "uint4"]),
        scheme=st.sampled_from(["symmetric", "affine"]),
        granularity=st.sampled_from(["per_tensor", "per_channel"]),
        estimator=st.sampled_from([EstimatorConfig(), EstimatorConfig("mse", {"steps": 10})]),
    ),
    st.builds(WeightConfig, dtype=st.sampled_from(["int4", "int8"]), block_size=st.integers(1, 64)),
    st.builds(WeightConfig, dtype=st.sampled_from(["lut1", "lut4", "lut8"]), group_size=st.none() | st.integers(1, 64)),
)
activations = st.builds(
    ActivationConfig,
    scheme=st.sampled_from(["symmetric", "affine"]),
    estimator=st.sampled_from([EstimatorConfig(name) for name in ESTIMATORS]),
)
layers = st.none() | st.builds(LayerConfig, weight=st.none() | weights, activation=st.none() | activations)
names = st.text("abc.", min_size=1, max_size=5)
configs = st.builds(
    QuantizerConfig,
    default=layers,
    modules=st.dictionaries(names, layers, max_size=3),
    patterns=st.dictionaries(names, layers, max_size=3),
    types=st.dictionaries(names, layers, max_size=3),
    ops=st.dictionaries(st.sampled_from(["aten.add", "aten.mul"]), layers, max_size=2),
    skip=st.builds(Skip, modules=st.tuples(names), ops=st.just(("aten.cat",))),
    first_layer=st.sampled_from(["as_configured", "weight_only", "float"]),
    outputs=st.sampled_from(["quantized", "float"]),
)


@settings(deadline=None, max_examples=100)
@given(configs)
def test_dict_and_yaml_give_the_same_configuration_back(config: QuantizerConfig) -> None:
    assert QuantizerConfig.from_dict(config.to_dict()) == config
    assert QuantizerConfig.from_yaml(config.to_yaml()) == config
    assert pickle.loads(pickle.dumps(config)) == config
    names = {item.name: item for item in dataclasses.fields(QuantizerConfig)}
    assert list(names) == list(config.to_dict())
    assert eval(repr(config)) == config


def test_configurations_show_what_is_set() -> None:
    config = QuantizerConfig(LayerConfig(WeightConfig("int4", block_size=32), None), skip=Skip(ops=(torch.add,)))
    weight = "WeightConfig(dtype='int4', granularity='per_block', block_size=32)"
    expected = f"QuantizerConfig(default=LayerConfig(weight={weight}, activation=None), skip=Skip(ops=('aten.add',)))"
    assert repr(config) == expected


def test_yaml_that_says_something_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="'modules' stands here twice"):
        QuantizerConfig.from_yaml("modules: {a: null}\nmodules: {b: null}\n")


def test_yaml_files_are_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    text = presets.w4_block32().to_yaml(path)
    assert path.read_text() == text
    assert QuantizerConfig.from_yaml(path) == presets.w4_block32() == QuantizerConfig.from_yaml(str(path))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (QuantizerConfig(), [FUSED, FUSED, FULL]),
        (QuantizerConfig(None), [FLOAT, FLOAT, FLOAT]),
        (QuantizerConfig(W8), [WEIGHT, WEIGHT, WEIGHT]),
        (QuantizerConfig(modules={"first": None}), [FLOAT, FUSED, FULL]),
        (QuantizerConfig(patterns={r".*\.inner": None}), [FLOAT, FLOAT, FULL]),
        (QuantizerConfig(patterns={"first|second": W8}), [WEIGHT, WEIGHT, FULL]),
        (QuantizerConfig(patterns={"first.*": W8, ".*": None}), [WEIGHT, FLOAT, FLOAT]),
        (QuantizerConfig(modules={"first.inner": W8}, patterns={"first": None}), [WEIGHT, FUSED, FULL]),
        (QuantizerConfig(patterns={"first": W8}, types={nn.Linear: None}), [WEIGHT, FLOAT, FLOAT]),
        (QuantizerConfig(types={"torch.nn.Linear": None}), [FLOAT, FLOAT, FLOAT]),
        (QuantizerConfig(types={"Linear": W8}, ops={"aten.linear": None}), [WEIGHT, WEIGHT, WEIGHT]),
        (QuantizerConfig(ops={"aten.linear": W8}), [WEIGHT, WEIGHT, WEIGHT]),
        (QuantizerConfig(types={Block: None}), [FLOAT, FLOAT, FULL]),
        (QuantizerConfig(modules={"first": W8}, skip=Skip(types=("Block",))), [FLOAT, FLOAT, FULL]),
        (QuantizerConfig(skip=Skip(patterns=("he.d",), modules=("first",))), [FLOAT, FUSED, READS]),
        (QuantizerConfig(first_layer="float"), [FLOAT, FUSED, FULL]),
        (QuantizerConfig(first_layer="weight_only"), [WEIGHT, FUSED, FULL]),
        (QuantizerConfig(last_layer="weight_only"), [FUSED, FUSED, READS_AND_WEIGHT]),
        (QuantizerConfig(last_layer="float", first_layer="float"), [FLOAT, FUSED, READS]),
        (QuantizerConfig(inputs="float"), [WEIGHT, FUSED, FULL]),
        (QuantizerConfig(outputs="float"), [FUSED, FUSED, FUSED]),
        (QuantizerConfig(inputs="float", outputs="float"), [WEIGHT, FUSED, FUSED]),
    ],
    ids=lambda value: None,
)
def test_the_most_specific_entry_decides(config: QuantizerConfig, expected: list) -> None:
    assert linears(config) == expected
    assert linears(config.to_dict()) == expected


def test_a_product_with_a_parameter_is_the_last_layer() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.table = nn.Linear(8, 8), nn.Parameter(torch.randn(8, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.matmul(self.linear(x), self.table)

    quantizer = CoreMLQuantizer(QuantizerConfig(last_layer="float"))
    graph = torch.export.export(Projected().eval(), (torch.randn(2, 8),)).module()
    entries = {found.op: found.entry for found in quantizer.report(prepare_pt2e(graph, quantizer)).decisions}
    assert entries == {"aten.linear": "global", "aten.matmul": "last_layer"}


def test_an_activation_behind_the_first_layer_stays_fused_when_inputs_are_float() -> None:
    prepared = prepare(Model(), ROWS, QuantizerConfig(inputs="float"))
    prepared(*ROWS)
    converted = convert_pt2e(prepared)
    first = calls(converted, aten.linear)[0]
    assert [user.target for user in first.users] == [aten.relu.default]
    assert not is_float_output(calls(converted, aten.relu)[0])


def test_functions_scope_operators() -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    for key in (torch.add, "torch.add", "aten.add"):
        prepared = prepare(Sums(), ROWS, QuantizerConfig(ops={key: None}))
        prepared(*ROWS)
        converted = convert_pt2e(prepared)
        assert is_float_output(call(converted, aten.add))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (QuantizerConfig(modules={"first.iner": None}), ["modules: nothing", "'first.inner'"]),
        (QuantizerConfig(types={"Liner": None}), ["types: nothing", "'Linear'"]),
        (QuantizerConfig(types={nn.Conv2d: None}), ["types", "Conv2d"]),
        (QuantizerConfig(ops={"aten.ad": None}), ["ops: nothing", "'aten.add'"]),
        (QuantizerConfig(patterns={"inner": None}), ["patterns", "'.*inner.*'", "'first.inner'"]),
        (QuantizerConfig(skip=Skip(modules=("hed",))), ["skip.modules", "'head'"]),
    ],
    ids=["module", "type", "class", "op", "pattern", "skip"],
)
def test_what_matches_nothing_is_refused_with_near_matches(config: QuantizerConfig, words: list[str]) -> None:
    with pytest.raises(ScopeError) as error:
        prepare(Model(), ROWS, config)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"defalt": None, "types": {}}, ["defalt", "'default'"]),
        ({"defalt": None}, ["configuration: there is no field 'defalt'", "'default'"]),
        ({"default": None, "global_config": None}, ["configuration: there is no field 'global_config'"]),
        ({"default": {"wight": None}}, ["default", "wight", "'weight'"]),
        ({"default": {"weight": {"dtype": "int3"}}}, ["default.weight.dtype='int3'", "'int4'"]),
        ({"default": {"weight": {"block_size": 0}}}, ["default.weight.block_size=0", "above zero"]),
        ({"default": {"weight": {"dtype": "lut4", "granularity": "per_channel"}}}, ["per_channel_group"]),
        ({"default": {"weight": {"granularity": "per_block"}}}, ["granularity='per_block'", "needs block_size"]),
        ({"default": {"weight": {"granularity": "per_tensor", "block_size": 8}}}, ["block_size=8", "per_block"]),
        ({"default": {"weight": {"dtype": "lut4", "scheme": "affine"}}}, ["scheme='affine'"]),
        ({"default": {"weight": {"dtype": "lut4", "estimator": "mse"}}}, ["estimator='mse'", "clustering"]),
        ({"default": {"weight": {"estimator": "entropy"}}}, ["estimator='entropy'", "'mse'"]),
        ({"default": {"weight": {"estimator": {"steps": 3}}}}, ["estimator={'steps': 3}", "name"]),
        (
            {"default": {"weight": {"estimator": {"name": "mse", "steps": float("inf")}}}},
            ["estimator.steps=inf", "[1, 4096]"],
        ),
        ({"default": {"activation": {"dtype": "int8"}}}, ["default.activation.dtype='int8'", "'uint8'"]),
        ({"default": {"activation": {"estimator": "histgram"}}}, ["estimator.name='histgram'", "'histogram'"]),
        (
            {"default": {"activation": {"estimator": {"name": "percentile", "percentile": 101}}}},
            ["percentile=101", "[50, 100]"],
        ),
        (
            {"default": {"activation": {"estimator": {"name": "percentile", "p": 99}}}},
            ["'p'", "'percentile'"],
        ),
        ({"modules": {"a": 3}}, ["modules['a']=3"]),
        ({"modules": {3: None}}, ["modules[3]", "string"]),
        ({"types": {nn.Linear: None, "torch.nn.Linear": {}}}, ["types['torch.nn.Linear']", "names the same"]),
        ({"ops": {torch.add: None, "aten.add.Tensor": {}}}, ["ops['aten.add.Tensor']", "names the same"]),
        ({"ops": {nn.Linear: None}}, ["ops[", "'types'"]),
        ({"ops": {nn.functional.interpolate: None}}, ["ops[", "no ATen operator"]),
        ({"patterns": {"(": None}}, ["patterns['(']", "regular expression"]),
        ({"skip": {"modules": "a"}}, ["skip.modules='a'", "list"]),
        ({"first_layer": "int8"}, ["first_layer='int8'", "'weight_only'"]),
        ({"inputs": True}, ["inputs=True", "'quantized'"]),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_its_path(config: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        CoreMLQuantizer(config)
    for word in words:
        assert word in str(error.value)


def test_every_problem_is_listed_at_once() -> None:
    bad = {"weight": {"dtype": "int3", "scheme": "odd"}, "activation": {"dtype": "int8"}}
    with pytest.raises(ConfigError) as error:
        QuantizerConfig.from_dict({"default": bad, "modules": {"a": bad}, "inputs": 1})
    assert str(error.value).count("\n") == 7


@pytest.mark.parametrize(
    "make",
    [
        lambda: WeightConfig("int3"),
        lambda: ActivationConfig(scheme="odd"),
        lambda: EstimatorConfig("mse", {"steps": 1.5}),
        lambda: LayerConfig(weight={"dtype": "int8"}),
        lambda: QuantizerConfig(default={"weight": None}),
        lambda: QuantizerConfig(skip={"modules": []}),
        lambda: QuantizerConfig.from_yaml("default: [unclosed\n"),
        lambda: QuantizerConfig.from_yaml("- a\n- b\n"),
        lambda: CoreMLQuantizer("w8a9"),
    ],
)
def test_objects_are_checked_when_they_are_made(make: object) -> None:
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_prepare_convert_and_stay_close(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    inputs = (torch.randn(16, 64, generator=torch.Generator().manual_seed(0)),)
    prepared = prepare_pt2e(torch.export.export(model, inputs).module(), CoreMLQuantizer(name))
    prepared(*inputs)
    converted = convert_pt2e(prepared)
    with torch.no_grad():
        expected, found = model(*inputs), converted(*inputs)
    # One bit less doubles the error; the constant is what two layers of eight bits leave here.
    bits = {"w4": 4, "w4_block32": 4, "lut6": 6, "lut4": 4, "lut4_group16": 4, "lut2": 2}.get(name, 8)
    assert float((found - expected).norm() / expected.norm()) <= 2.0 ** (2 - bits)
    assert QuantizerConfig.from_yaml(presets.named(name).to_yaml()) == presets.named(name)
    quantizes = any(node.target is QDQ.quantize_per_tensor.default for node in converted.graph.nodes)
    assert quantizes == name.startswith("w8a8")


def test_the_default_is_w8a8() -> None:
    assert linears("w8a8") == linears(presets.w8a8())
    assert CoreMLQuantizer(None)._policy == CoreMLQuantizer("w8a8")._policy


def test_training_is_part_of_a_layer() -> None:
    config = QuantizerConfig(LayerConfig(algorithm="learnable", milestones=(0, 10, 30, -1)))
    assert QuantizerConfig.from_dict(config.to_dict()) == config
    assert "milestones=(0, 10, 30, -1)" in repr(config)
    for wrong, words in (
        ({"algorithm": "lsq"}, "algorithm='lsq'"),
        ({"milestones": [3, 1, 4, 5]}, "milestones=[3, 1, 4, 5]: 'fake quantization on' comes before"),
        ({"milestones": 4}, "milestones=4: must be None or 4 step counts"),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            QuantizerConfig.from_dict({"default": wrong})
