"""coremltools' LinearQuantizerConfig means what it says, and what cannot be had is refused."""

import pickle

import pytest
import torch
from coremltools.optimize.torch.quantization import LinearQuantizerConfig, ModuleLinearQuantizerConfig
from helpers.graphs import (
    QDQ,
    ROWS,
    WEIGHT_ONLY,
    call,
    calls,
    input_qparams,
    is_dequantized,
    output_qparams,
    prepare,
    quantize,
)
from helpers.named_network import Block, Model
from torch import Tensor, nn

from coreml_quantizer import ConfigError, CoreMLQuantizer, QuantizerError, QuantizerWarning, ScopeError
from coreml_quantizer.placement.decisions import decisions_of

aten = torch.ops.aten


def linears(config: object, strict: bool = False) -> list[tuple[bool, bool]]:
    """(input annotated, weight annotated) of first.inner, second.inner and head."""
    exported = torch.export.export(Model().eval(), ROWS, strict=strict).module()
    CoreMLQuantizer(config).annotate(exported)
    found = []
    for node in calls(exported, aten.linear):
        annotation = node.meta.get("quantization_annotation")
        wanted = annotation.input_qspec_map if annotation is not None else {}
        found.append((node.args[0] in wanted, node.args[1] in wanted))
    return found


QUANTIZED, FLOAT, WEIGHT = (True, True), (False, False), (False, True)
W8 = WEIGHT_ONLY["global_config"]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"module_name_configs": {"first": None}, "global_config": {}}, [FLOAT, QUANTIZED, QUANTIZED]),
        ({"module_name_configs": {"first.inner": W8}, "global_config": {}}, [WEIGHT, QUANTIZED, QUANTIZED]),
        ({"module_name_configs": {"head": {}}}, [FLOAT, FLOAT, QUANTIZED]),
        ({"module_type_configs": {"Linear": None}, "global_config": {}}, [FLOAT, FLOAT, FLOAT]),
        ({"module_type_configs": {"Linear": W8}}, [WEIGHT, WEIGHT, WEIGHT]),
        (
            {"module_type_configs": {"Linear": None}, "module_name_configs": {"second": {}}, "global_config": W8},
            [FLOAT, QUANTIZED, FLOAT],
        ),
        (
            {"module_name_configs": {"first": None, "first.inner": {}}, "global_config": W8},
            [QUANTIZED, WEIGHT, WEIGHT],
        ),
        ({"global_config": W8, "module_type_configs": {"torch.add": None}}, [WEIGHT, WEIGHT, WEIGHT]),
    ],
)
def test_name_over_type_over_global(config: dict, expected: list, strict: bool) -> None:
    assert linears(config, strict) == expected


def test_classes_and_own_classes_are_types() -> None:
    config = LinearQuantizerConfig(
        global_config=ModuleLinearQuantizerConfig(), module_type_configs={nn.Linear: None, Block: None}
    )
    assert linears(config) == [FLOAT, FLOAT, FLOAT]
    config = LinearQuantizerConfig(global_config=ModuleLinearQuantizerConfig(), module_type_configs={Block: None})
    assert linears(config) == [FLOAT, FLOAT, QUANTIZED]


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return (y + y) * y


@pytest.mark.parametrize("key", [torch.add, "torch.add", "operator.add"])
def test_functions_are_types(key: object) -> None:
    config = LinearQuantizerConfig.from_dict({"global_config": {}, "module_type_configs": {key: None}})
    graph = quantize(Sum(), ROWS, config)
    outcomes = {decision.op: (decision.outcome, decision.entry) for decision in decisions_of(graph)}
    assert outcomes["aten.add"] == ("float", "op aten.add")
    assert outcomes["aten.mul"] == ("quantized", "global")
    assert all(is_dequantized(operand) for operand in call(graph, aten.mul).args)
    assert {decision.outcome for decision in decisions_of(quantize(Sum(), ROWS))} == {"quantized"}


def test_a_skipped_layer_does_not_change_the_next_one() -> None:
    graph = quantize(Model(), ROWS, {"global_config": {}, "module_name_configs": {"first": None}})
    second = calls(graph, aten.linear)[1]
    assert is_dequantized(second.args[0])
    assert is_dequantized(second.args[1])


@pytest.mark.parametrize(
    ("weight_dtype", "qmin", "qmax", "dtype"),
    [
        ("qint8", -128, 127, torch.int8),
        ("quint8", 0, 255, torch.uint8),
        ("qint4", -8, 7, torch.int8),
        ("quint4", 0, 15, torch.uint8),
    ],
)
def test_weight_dtypes(weight_dtype: str, qmin: int, qmax: int, dtype: torch.dtype) -> None:
    graph = quantize(nn.Linear(6, 4), ROWS, {"global_config": {"weight_dtype": weight_dtype}})
    assert call(graph, aten.linear).args[1].args[4:] == (qmin, qmax, dtype)


def test_per_tensor_weights_and_affine_scheme() -> None:
    graph = quantize(
        nn.Linear(6, 4),
        (ROWS[0] + 2,),
        {"global_config": {"weight_per_channel": False, "quantization_scheme": "affine"}},
    )
    linear = call(graph, aten.linear)
    assert linear.args[1].target is QDQ.dequantize_per_tensor.default
    scale, zero_point = input_qparams(linear)
    assert zero_point == 0, "inputs in [1, 3] start at zero"
    assert 3 / 255 <= scale <= 3 / 255 * (1 + 2**-10)
    output_qparams(linear)


@pytest.mark.parametrize(
    ("observer", "expected"), [("min_max", 8.0), ("moving_average_min_max", 2.06), ("ema_min_max", 2.6)]
)
def test_observers_of_the_config(observer: str, expected: float) -> None:
    prepared = prepare(nn.Linear(6, 4), ROWS, {"global_config": {"activation_observer": observer}})
    for peak in (2.0, 8.0):
        prepared(torch.full((4, 6), peak))
    assert float(prepared.activation_post_process_0.max_val) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"module_name_configs": {"first.iner": None}, "global_config": {}}, ["first.iner", "'first.inner'"]),
        ({"module_name_configs": {"layer9": {}}, "global_config": {}}, ["layer9"]),
        ({"module_type_configs": {"Conv2d": {}}, "global_config": {}}, ["Conv2d"]),
        ({"module_type_configs": {"Blok": None}, "global_config": {}}, ["Blok", "'Block'"]),
        ({"module_type_configs": {"torch.sub": None}, "global_config": {}}, ["aten.sub", "'aten.add'"]),
    ],
)
def test_what_matches_nothing_is_refused_with_near_matches(config: dict, words: list[str]) -> None:
    with pytest.raises(ScopeError) as error:
        prepare(Model(), ROWS, config)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"global_config": {"algorithm": "learned"}}, ["algorithm='learned'", "'learnable'"]),
        ({"global_config": {"no_such_field": 1}}, ["no_such_field"]),
        ({"glob_config": {}}, ["glob_config"]),
        ({"global_config": {"weight_dtype": "int3"}}, ["int3"]),
        ({"global_config": {"activation_dtype": "qint8"}}, ["qint8"]),
        ({"global_config": {"weight_dtyp": "qint8"}}, ["weight_dtyp", "'weight_dtype'"]),
        ({"global_config": {"quantization_scheme": "foo"}}, ["quantization_scheme='foo'", "'symmetric', 'affine'"]),
        ({"global_config": {"activation_observer": "histogram"}}, ["activation_observer='histogram'", "'min_max'"]),
        ({"global_config": {"activation_dtype": "quint4"}}, ["activation_dtype='quint4'", "'quint8'"]),
        ({"global_config": {"weight_per_channel": "yes"}}, ["weight_per_channel='yes'", "True, False"]),
        ({"module_name_configs": {"head": [1]}}, ["module_name_configs['head']=[1]", "None"]),
        ({"module_name_configs": ["head"]}, ["module_name_configs=['head']", "dict"]),
        ({"module_name_configs": {3: None}}, ["module_name_configs[3]", "string"]),
        ({"module_name_configs": None}, ["module_name_configs=None", "dict"]),
        ({"global_config": {"milestones": "abc"}}, ["global_config.milestones='abc'", "4 step counts"]),
        ({"module_type_configs": {nn.functional.interpolate: None}}, ["interpolate", "ATen"]),
        ({"module_type_configs": {nn.Linear: {}, "torch.nn.Linear": None}}, ["names the same"]),
        ({"weight_dtype": "qint4"}, ["weight_dtype", "global_config"]),
        ({"global_config": {"weight_dtype": "int8", "quantization_scheme": "x"}}, ["weight_dtype='int8'", "='x'"]),
        (object(), ["object", "dynamic quantization", "LinearQuantizerConfig"]),
    ],
)
def test_what_cannot_be_honoured_is_refused_at_construction(config: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        CoreMLQuantizer(config)
    assert isinstance(error.value, QuantizerError)
    for word in words:
        assert word in str(error.value)


def test_what_is_set_after_construction_is_checked_too() -> None:
    config = LinearQuantizerConfig()
    config.global_config.weight_dtype = "qint4"
    config.set_module_name("head", {"weight_dtype": "qint4"}).set_module_type("Linear", 5).set_module_name(3, None)
    with pytest.raises(ConfigError) as error:
        CoreMLQuantizer(config)
    for word in ("weight_dtype='qint4'", "module_name_configs['head']", "module_type_configs['", "configs[3]"):
        assert word in str(error.value)


def test_a_dict_may_hold_module_configurations() -> None:
    config = {"module_name_configs": {"head": ModuleLinearQuantizerConfig(activation_dtype=torch.float32)}}
    assert linears(config) == [FLOAT, FLOAT, WEIGHT]


def test_a_configuration_that_quantizes_nothing_is_reported() -> None:
    with pytest.warns(QuantizerWarning, match="global_config is None"):
        CoreMLQuantizer({"module_name_configs": {"head": None}})


def test_every_problem_is_listed() -> None:
    bad = {"milestones": [3, 1, 4, 4]}
    with pytest.raises(ConfigError) as error:
        CoreMLQuantizer({"global_config": bad, "module_name_configs": {"head": {"milestones": [0, 1, 2, -3]}}})
    assert str(error.value).count("\n") == 2


def test_fields_without_effect_are_reported() -> None:
    with pytest.warns(QuantizerWarning, match="preserved_attributes"):
        CoreMLQuantizer({"global_config": {}, "preserved_attributes": ["key"]})


def test_a_quantizer_can_be_reused_and_pickled() -> None:
    quantizer = CoreMLQuantizer(LinearQuantizerConfig(global_config=ModuleLinearQuantizerConfig()))
    assert "LinearQuantizerConfig" in repr(quantizer)
    outputs = []
    for again in (quantizer, quantizer, pickle.loads(pickle.dumps(quantizer))):
        exported = torch.export.export(Model().eval(), ROWS).module()
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        prepared = prepare_pt2e(exported, again)
        prepared(*ROWS)
        outputs.append(convert_pt2e(prepared)(*ROWS))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
