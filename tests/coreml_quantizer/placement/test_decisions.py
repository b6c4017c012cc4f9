"""Every operator call has one decision, which says what became of it, by what, and why."""

import pytest
import torch
from helpers.graphs import ROWS, WEIGHT_ONLY, calls, prepare, quantize
from torch import Tensor, nn

from coreml_quantizer import QuantizerError, QuantizerWarning
from coreml_quantizer.placement.decisions import Decision, decisions_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.gate = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).reshape(2, 2, 6)
        return self.head(self.norm(y).reshape(4, 6)) * torch.sigmoid(self.head(self.gate(x)).erf())


def by_node(config: object = None) -> dict[str, Decision]:
    return {decision.node: decision for decision in decisions_of(prepare(Net(), ROWS, config))}


def test_decisions_tell_outcome_rule_entry_module_and_weights() -> None:
    found = by_node()
    assert found["linear"] == Decision(
        node="linear",
        op="aten.linear",
        module="body.0",
        outcome="quantized",
        rule="aten.linear",
        entry="global",
        reason="int8 weights and activations run on the Neural Engine's int8 path",
        weights=("body.0.weight",),
        activations=True,
    )
    assert (found["relu"].outcome, found["relu"].reason) == ("quantized", "it is fused into linear")
    assert found["reshape"].outcome == "shared"
    assert (found["layer_norm"].outcome, found["layer_norm"].module) == ("float", "norm")
    assert (found["erf"].outcome, found["erf"].reason) == ("float", "no rule names this operator")
    assert (found["sigmoid"].outcome, found["sigmoid"].reason) == ("float", "its input is in floating point")


def test_fixed_qparams_are_an_outcome_of_their_own() -> None:
    prepared = prepare(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Sigmoid(), nn.Flatten()), ROWS)
    assert [decision.outcome for decision in decisions_of(prepared)] == ["quantized", "quantized", "fixed", "shared"]


def test_weight_only_and_skipped_operators_say_so() -> None:
    found = by_node({**WEIGHT_ONLY, "module_name_configs": {"gate": None}})
    linear, gate = found["linear"], found["linear_2"]
    assert (linear.outcome, linear.activations, linear.weights) == ("quantized", False, ("body.0.weight",))
    assert (gate.outcome, gate.entry, gate.weights) == ("float", "module_name gate", ())
    assert gate.reason == "the configuration leaves it in floating point (module_name gate)"
    assert found["reshape"].outcome == "float"


def test_decisions_survive_conversion_and_are_missed_where_there_are_none() -> None:
    assert decisions_of(quantize(Net(), ROWS)) == tuple(by_node().values())
    with pytest.raises(QuantizerError, match="no record"):
        decisions_of(torch.export.export(Net(), ROWS).module())


def test_branches_of_control_flow_are_reported_as_float() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda y: self.a(y), lambda y: self.b(y).relu(), (x,))

    found = {decision.node: decision for decision in decisions_of(prepare(Branches(), ROWS))}
    assert found["cond"].outcome == "float"
    inside = [decision for name, decision in found.items() if "." in name]
    assert [decision.op for decision in inside] == ["aten.linear", "aten.linear", "aten.relu"]
    assert all(decision.outcome == "float" and "inside cond" in decision.reason for decision in inside)


def test_a_model_in_float64_is_warned_of() -> None:
    with pytest.warns(QuantizerWarning, match=r"2 operators compute in float64.*0, 1.*model\.float\(\)"):
        prepared = prepare(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)).double(), (ROWS[0].double(),))
    assert {decision.outcome for decision in decisions_of(prepared)} == {"float"}
    assert "float64" in decisions_of(prepared)[0].reason


def test_a_model_in_bfloat16_is_warned_of() -> None:
    model, inputs = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)).bfloat16(), (ROWS[0].bfloat16(),)
    with pytest.warns(QuantizerWarning, match=r"2 operators compute in bfloat16.*stay outside.*0, 1.*model\.float\(\)"):
        prepare(model, inputs)


MIN_MAX = {"global_config": {}, "module_name_configs": {"b": {"activation_observer": "min_max"}}}


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.c(self.b(x))


def test_two_readers_of_a_float_value_each_keep_their_estimator() -> None:
    prepared = prepare(Two(), ROWS, MIN_MAX)
    for peak in (2.0, 8.0):
        prepared(torch.full((4, 6), peak))
    first, second = (node.args[0] for node in calls(prepared, torch.ops.aten.linear)[:2])
    assert float(prepared.get_submodule(str(first.target)).max_val) == pytest.approx(2.06)
    assert float(prepared.get_submodule(str(second.target)).max_val) == 8.0


def test_a_reader_whose_settings_give_way_to_those_of_the_producer_says_so() -> None:
    found = {decision.module: decision for decision in decisions_of(prepare(Two(), ROWS, MIN_MAX))}
    assert found["c"].outcome == "quantized"
    assert found["c"].reason.startswith("it reads linear_1 with the parameters of the producer")
