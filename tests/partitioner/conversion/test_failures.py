"""Conversions that fail: the operation is found and named, or stays outside Core ML on request."""

import gc
import json
import re
import weakref

import coremltools as ct
import pytest
import torch
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
from executorch.exir import to_edge_transform_and_lower
from helpers.lowering import Function, calls, delegates
from helpers.lowering import lower as lower_to_edge
from torch import Tensor, nn

from partitioner import CoreMLBackend, CoreMLPartitioner, errors, host, lower
from partitioner.conversion import trials
from partitioner.lowerings import registry

X = torch.linspace(-1, 1, 16).reshape(2, 8)
FLOAT32 = CoreMLBackend.generate_compile_specs(compute_precision=ct.precision.FLOAT32)


class Fragile(AbstractGraphPass):
    """A MIL pass that fails on hyperbolic tangents, without a word of where they are."""

    def apply(self, prog) -> None:
        for function in prog.functions.values():
            if any(operation.op_type == "tanh" for operation in function.operations):
                raise RuntimeError("no tangents")


@pytest.fixture
def fragile_pass() -> list[str]:
    PASS_REGISTRY.add("tests", Fragile, override=True, name=None)
    return ["common::dead_code_elimination", "tests::Fragile"]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    def fail(_context: object, _node: object) -> None:
        raise KeyError("dtype")

    return lambda name: monkeypatch.setitem(registry._TORCH_OPS_REGISTRY.name_to_func_mapping, name, fail)


class Deep(nn.Module):
    """Twelve linear layers and one hyperbolic tangent in the middle."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(12))

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(x).relu() if index != 7 else layer(x).tanh()
        return x


SLOW = pytest.mark.slow


@pytest.mark.parametrize("whole", [True, pytest.param(False, marks=SLOW)], ids=["lower", "edge"])
def test_a_failing_pass_is_traced_to_the_operation_by_bisection(fragile_pass: list[str], whole: bool) -> None:
    specs = CoreMLBackend.generate_compile_specs(pass_names=fragile_pass)
    partitioner = CoreMLPartitioner(compile_specs=specs)
    program = torch.export.export(Deep(), (X,))
    with pytest.raises(errors.ConversionError) as error:
        _ = (
            lower(program, partitioner=partitioner)
            if whole
            else to_edge_transform_and_lower(program, [], [partitioner])
        )
    message = str(error.value)
    assert "could not convert aten.tanh.default (node " in message
    assert "else layer(x).tanh()" in message
    assert "in MIL pass 'tests::Fragile'): RuntimeError: no tangents" in message
    assert "skip_ops_for_coreml_delegation=['aten.tanh.default']" in message
    assert error.value.node in ("tanh", "aten_tanh_default")


@pytest.mark.parametrize("direct", [pytest.param(True, marks=SLOW), False], ids=["lower", "edge"])
def test_what_fails_stays_outside_on_request(failing, direct: bool) -> None:
    failing("tanh")
    partitioner = CoreMLPartitioner(compile_specs=FLOAT32, on_error="fallback")
    model = Deep()
    program = torch.export.export(model, (X,))
    if direct:
        buffer = lower(program, partitioner=partitioner).buffer
    else:
        manager = to_edge_transform_and_lower(program, partitioner=[partitioner])
        assert len(delegates(manager)) == 2
        buffer = manager.to_executorch().buffer
    (rejection,) = partitioner.rejections
    assert rejection.op == "aten.tanh.default"
    assert rejection.reason == "its conversion fails: KeyError: 'dtype'"
    assert "layer(x).tanh()" in str(rejection.source)
    (report,) = partitioner.report()
    assert report.rows[0].op == "aten.tanh.default"
    assert not report.rows[0].delegated
    assert report.partitions == 2
    assert json.dumps(report.to_dict())
    (result,) = host.run(buffer, X)
    torch.testing.assert_close(result, model(X).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_failing_pass_leaves_its_operation_outside_on_request(fragile_pass: list[str]) -> None:
    specs = CoreMLBackend.generate_compile_specs(pass_names=fragile_pass, compute_precision=ct.precision.FLOAT32)
    partitioner = CoreMLPartitioner(compile_specs=specs, on_error="fallback")
    model = Deep()
    lowered = lower(torch.export.export(model, (X,)), partitioner=partitioner)
    assert [rejection.op for rejection in lowered.rejections] == ["aten.tanh.default"]
    (result,) = host.run(lowered.buffer, X)
    torch.testing.assert_close(result, model(X).detach(), rtol=1e-5, atol=1e-5)


def test_a_composite_operation_that_fails_is_decomposed_instead(failing) -> None:
    """ExecuTorch has no kernel for a layer norm as a whole; its parts convert."""
    failing("layer_norm")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)).eval()
    partitioner = CoreMLPartitioner(compile_specs=FLOAT32, on_error="fallback")
    manager = lower_to_edge(model, (X,), partitioner=partitioner)
    assert not any("layer_norm" in name and "native" not in name for name in calls(manager))
    (result,) = host.run(manager.to_executorch().buffer, X)
    torch.testing.assert_close(result, model(X).detach(), rtol=1e-5, atol=1e-5)


def test_a_conversion_that_core_ml_tools_refuses_by_itself() -> None:
    """A product of 8-bit integers, which Core ML Tools would have to transpose."""
    weight = torch.ones(8, 2, dtype=torch.int8)
    program = torch.export.export(Function(lambda x: (x.to(torch.int8) @ weight).float() * 2), (X,))
    with pytest.raises(
        errors.ConversionError, match=r"aten\.matmul\.default \(node 'aten_matmul.*, in forward"
    ) as error:
        to_edge_transform_and_lower(program, partitioner=[CoreMLPartitioner(compile_specs=FLOAT32)])
    (name,) = re.findall(r"skip_ops_for_coreml_delegation=\['(.*?)'\]", str(error.value))
    for options in ({"skip_ops_for_coreml_delegation": [name]}, {"on_error": "fallback"}):
        partitioner = CoreMLPartitioner(compile_specs=FLOAT32, **options)
        manager = to_edge_transform_and_lower(program, partitioner=[partitioner]).to_executorch()
        assert torch.equal(host.run(manager.buffer, X)[0], (X.to(torch.int8) @ weight).float() * 2)


@pytest.mark.slow
def test_what_converts_is_the_same_with_and_without_trials() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    programs = [
        lower_to_edge(model, (X,), partitioner=CoreMLPartitioner(on_error=choice)) for choice in ("raise", "fallback")
    ]
    assert programs[0].to_executorch().buffer == programs[1].to_executorch().buffer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_error": "ignore"}, "on_error='ignore' must be one of 'raise', 'fallback'"),
        ({"on_error": "fallback", "lower_full_graph": True}, 'on_error must be "raise" when lower_full_graph=True'),
        ({"delegate_islands": 1}, "delegate_islands=1 must be True or False"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(errors.CompileSpecError, match=message):
        CoreMLPartitioner(**arguments)


class Islands(nn.Module):
    """Between two operations that stay on the CPU, something cheap."""

    def __init__(self, between) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.asinh(self.between(torch.asinh(self.linear(x)))))


def test_a_few_cheap_operations_between_others_stay_on_the_cpu() -> None:
    torch.manual_seed(0)
    model = Islands(lambda x: (x * 2 + 1).relu())
    partitioner = CoreMLPartitioner(compile_specs=FLOAT32)
    manager = lower_to_edge(model, (X,), partitioner=partitioner)
    assert len(delegates(manager)) == 2
    reasons = {rejection.op: rejection.reason for rejection in partitioner.rejections}
    assert "cheap operations between operations on the CPU" in reasons["aten.mul.Tensor"]
    (report,) = partitioner.report()
    assert any("delegate_islands=True" in str(row.remedy) for row in report.rows)
    (result,) = host.run(manager.to_executorch().buffer, X)
    torch.testing.assert_close(result, model(X).detach(), rtol=1e-5, atol=1e-5)


def test_no_operation_stays_on_the_cpu_where_nothing_runs_it() -> None:
    torch.manual_seed(0)
    model = Islands(lambda x: x.sort(-1).values)
    partitioner = CoreMLPartitioner(compile_specs=FLOAT32)
    manager = lower_to_edge(model, (X,), partitioner=partitioner)
    assert len(delegates(manager)) == 3
    assert {rejection.op for rejection in partitioner.rejections} == {"aten.asinh.default"}
    (result,) = host.run(manager.to_executorch().buffer, X)
    torch.testing.assert_close(result, model(X).detach(), rtol=1e-5, atol=1e-5)


class Outside(nn.Module):
    """A linear layer, and an operator that Core ML does not take, so that the program is not lowered whole."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        nn.init.constant_(self.layer.weight, weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x).relu(), (x > 0).int() ^ 3


def export_outside(weight: float = 1.0) -> torch.export.ExportedProgram:
    return torch.export.export(Outside(weight).eval(), (X,))


WAYS = {
    "edge": lambda partitioner: to_edge_transform_and_lower(export_outside(), partitioner=[partitioner]),
    "edge, two methods": lambda partitioner: to_edge_transform_and_lower(
        {"first": export_outside(), "second": export_outside()}, partitioner=[partitioner]
    ),
    "lower": lambda partitioner: lower(export_outside(), partitioner=partitioner),
    "lower, two methods": lambda partitioner: lower(
        {"first": export_outside(), "second": export_outside()}, partitioner=partitioner
    ),
}


def held_tensors(value: object) -> list[Tensor]:
    """The tensors that an object keeps alive through containers and its attributes."""
    found, seen, waiting = [], set(), [vars(value)]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (dict, list, tuple, set, weakref.WeakValueDictionary, weakref.ref)):
            waiting += gc.get_referents(item)
    return found


def test_held_tensors_are_found_through_strong_references_alone() -> None:
    tensor, holder = torch.ones(2), nn.Module()
    holder.weak = weakref.WeakValueDictionary({"x": tensor})  # type: ignore[assignment]
    assert held_tensors(holder) == []
    holder.strong = {"x": [tensor]}  # type: ignore[assignment]
    assert [item is tensor for item in held_tensors(holder)] == [True]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_a_partitioner_lets_go_of_the_weights_that_it_converted_on_trial(way) -> None:
    partitioner = CoreMLPartitioner(on_error="fallback")
    lowered = way(partitioner)
    assert partitioner.report()
    assert held_tensors(partitioner) == []
    del lowered


@pytest.mark.parametrize("way", ["edge", "lower"])
def test_trials_convert_the_weights_of_the_program_at_hand(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []

    def convert(program: torch.export.ExportedProgram, options: object) -> object:
        weights.extend(float(value[0, 0]) for value in program.state_dict.values() if value.dim() == 2)
        return trial(program, options)

    trial = trials.convert
    monkeypatch.setattr(trials, "convert", convert)
    partitioner = CoreMLPartitioner(on_error="fallback")
    kept = [export_outside(2.0), export_outside(3.0)]
    for program, expected in zip(kept, (2.0, 3.0), strict=True):
        weights.clear()
        if way == "edge":
            to_edge_transform_and_lower(program, partitioner=[partitioner])
        else:
            lower(program, partitioner=partitioner)
        assert weights
        assert set(weights) == {expected}


@pytest.mark.slow
def test_islands_go_to_core_ml_on_request() -> None:
    model = Islands(lambda x: (x * 2 + 1).relu())
    manager = lower_to_edge(model, (X,), partitioner=CoreMLPartitioner(delegate_islands=True))
    assert len(delegates(manager)) == 3


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x @ x.t() @ x,
        lambda x: x.repeat(64, 128).relu().mean() + x,
        lambda x: nn.functional.gelu(x) * x.new_ones(8).cos().sin().exp().log().relu().abs().tanh().sigmoid(),
    ],
    ids=["product", "large", "many"],
)
@pytest.mark.slow
def test_what_is_worth_a_call_goes_to_core_ml(between) -> None:
    assert len(delegates(lower_to_edge(Islands(between), (X,), partitioner=CoreMLPartitioner()))) == 3


class Total(nn.Module):
    """An island whose buffer is written: a state of Core ML, which cannot leave it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(torch.asinh(x))
        return torch.asinh(self.total * 2)


@pytest.mark.parametrize("take_over", [True, pytest.param(False, marks=SLOW)])
def test_islands_with_states_are_left_alone(take_over: bool) -> None:
    partitioner = CoreMLPartitioner(take_over_mutable_buffer=take_over)
    manager = lower_to_edge(Total(), (X,), partitioner=partitioner)
    assert len(delegates(manager)) == 1


def test_a_program_that_is_one_island_goes_to_core_ml() -> None:
    partitioner = CoreMLPartitioner()
    assert len(delegates(lower_to_edge(Function(lambda x: x * 2), (X,), partitioner=partitioner))) == 1
    assert partitioner.rejections == ()
