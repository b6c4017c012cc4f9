"""Observers during calibration, their insertion, and what they refuse."""

import pickle

import pytest
import torch
from helpers.graphs import ROWS, prepare
from torch import nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

from coreml_quantizer import CalibrationError, CoreMLQuantizer, OpRule, QuantizerError, RuleError, Treatment, rules
from coreml_quantizer.estimators import AutomaticObserver, MinMaxObserver, MovingAverageObserver
from coreml_quantizer.placement import prepare_kind
from coreml_quantizer.qat.quantizers.estimated import FakeQuantize
from coreml_quantizer.specs import INT8, UINT8, PerChannel, TensorSpec


class _LeavesInsertionToTorchao(CoreMLQuantizer):
    def prepare_obs_or_fq_callback(self, model: GraphModule, edge_or_node_to_obs_or_fq: dict) -> None:
        prepare_kind.detect(model, edge_or_node_to_obs_or_fq)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    ).eval()


def test_our_insertion_gives_the_graph_that_torchao_would_make() -> None:
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    texts, outputs = [], []
    for kind in (CoreMLQuantizer, _LeavesInsertionToTorchao):
        prepared = prepare_pt2e(torch.export.export(small_model(), (image,)).module(), kind())
        prepared(image)
        converted = convert_pt2e(prepared)
        texts.append([(str(n.target), [str(a.target) for a in n.all_input_nodes]) for n in converted.graph.nodes])
        outputs.append(converted(image))
    assert texts[0] == texts[1]
    assert torch.equal(outputs[0], outputs[1])


def test_calibration_sees_float_values() -> None:
    model = small_model()
    image = torch.randn(2, 3, 8, 8)
    prepared = prepare(model, (image,))
    expected = model(image)
    # Only the two biases, rounded to float16, differ: by 2**-12 of themselves, and the second layer averages.
    torch.testing.assert_close(prepared(image), expected, rtol=0, atol=2**-11 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("layer", "name"), [(nn.Dropout(0.5), "'1'"), (nn.BatchNorm1d(4), "'1'")], ids=["dropout", "batch norm"]
)
def test_a_graph_in_training_mode_is_refused(layer: nn.Module, name: str) -> None:
    model = nn.Sequential(nn.Linear(6, 4), layer).train()
    exported = torch.export.export(model, ROWS).module()
    with pytest.raises(QuantizerError, match=rf"training mode: {name}.*model.eval\(\)"):
        prepare_pt2e(exported, CoreMLQuantizer())


def test_min_max_against_float64() -> None:
    batches = torch.randn(5, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    observer = MinMaxObserver(TensorSpec(INT8, granularity=PerChannel(1)))
    for batch in batches:
        observer(batch.float())
    assert torch.equal(observer.min_val, batches.amin((0, 1)).float())
    assert torch.equal(observer.max_val, batches.amax((0, 1)).float())


def test_the_default_estimator_keeps_all_of_calibration_and_follows_training() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
    exported = torch.export.export(model, ROWS)
    prepared = prepare_pt2e(exported.module(), CoreMLQuantizer())
    for factor in (1.0, 3.0, 0.5):
        prepared(factor * ROWS[0])
    watching = [m for m in prepared.modules() if isinstance(m, AutomaticObserver)]
    assert len(watching) == 3  # the input, tanh, and the second layer
    low, high = watching[0].estimate()
    assert (float(low), float(high)) == (-3.0, 3.0)

    trained = prepare_qat_pt2e(exported.module(), CoreMLQuantizer())
    observers = [m.observer for m in trained.modules() if isinstance(m, FakeQuantize)]
    assert [type(observer) for observer in observers if observer.ch_axis < 0] == [MovingAverageObserver] * 3
    assert {type(observer) for observer in observers if observer.ch_axis >= 0} == {MinMaxObserver}


def test_moving_average_against_float64() -> None:
    batches = torch.randn(50, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    observer = MovingAverageObserver(TensorSpec(UINT8), momentum=0.1)
    expected = float(batches[0].max())
    for index, batch in enumerate(batches):
        observer(batch.float())
        if index:
            expected += 0.1 * (float(batch.max()) - expected)
    assert float(observer.max_val) == pytest.approx(expected, rel=50 * 2**-24)


def test_conversion_without_calibration_names_the_tensor_and_the_remedy() -> None:
    with pytest.raises(CalibrationError, match=r"never observed.*convert_pt2e.*activation_dtype=torch.float32"):
        convert_pt2e(prepare(small_model(), (torch.randn(2, 3, 8, 8),)))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_no_numbers_are_refused(value: float) -> None:
    prepared = prepare(nn.Linear(6, 4), ROWS)
    prepared(torch.full((4, 6), value))
    with pytest.raises(CalibrationError, match="not-a-number or infinite"):
        convert_pt2e(prepared)


def test_an_empty_batch_observes_nothing() -> None:
    observer = MinMaxObserver(TensorSpec(UINT8))
    observer(torch.empty(0, 3))
    with pytest.raises(CalibrationError, match="never observed"):
        observer.calculate_qparams()


def test_weight_observers_follow_the_weight_until_conversion() -> None:
    prepared = prepare(nn.Linear(6, 4), ROWS)
    prepared(*ROWS)
    with torch.no_grad():
        prepared.get_parameter("weight").mul_(3.0)
    converted = convert_pt2e(prepared)
    scale = converted.get_buffer("_scale_0")
    expected = converted_weight_peak(converted) / 127.5
    assert ((scale >= expected * (1 - 2**-7)) & (scale <= expected * (1 + 2**-7))).all()


def converted_weight_peak(converted: GraphModule) -> torch.Tensor:
    weight = converted.get_buffer("_frozen_param0").float() * converted.get_buffer("_scale_0")[:, None]
    return weight.abs().amax(1)


def test_observers_can_be_pickled() -> None:
    observer = MovingAverageObserver(TensorSpec(UINT8))
    observer(ROWS[0])
    again = pickle.loads(pickle.dumps(observer))
    assert again.calculate_qparams() == observer.calculate_qparams()


def test_rules_are_registered_once_and_give_a_reason() -> None:
    relu = torch.ops.aten.relu
    with pytest.raises(RuleError, match=r"aten\.relu has a rule already"):
        rules.register(OpRule(relu, Treatment.FLOAT, reason="because"))
    with pytest.raises(RuleError, match="needs a reason"):
        rules.register(OpRule(torch.ops.aten.erfinv, Treatment.FLOAT))
    previous = rules.unregister(relu)
    rules.register(previous)
    assert len({rule.op for rule in rules}) == len(rules)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (3, "is no OpRule"),
        (OpRule("aten.foo", Treatment.FLOAT, reason="why"), "never stands in an exported graph"),
        (OpRule(torch.cumsum, Treatment.FLOAT, reason="why"), "never stands in an exported graph"),
        (OpRule(torch.ops.aten.tan.default, Treatment.FLOAT, reason="why"), "one overload"),
        (OpRule(torch.ops.aten.tan, "shared", reason="why"), "treatment 'shared'"),
    ],
    ids=["number", "string", "function", "overload", "treatment"],
)
def test_rules_that_could_never_hold_are_refused(rule: object, words: str) -> None:
    with pytest.raises(RuleError, match=words):
        rules.register(rule)


@pytest.mark.parametrize("rule", list(rules), ids=lambda rule: str(rule.op))
def test_every_rule_says_why_and_where_from(rule: OpRule) -> None:
    assert rule.reason
    assert rule.source
