"""Every argument of the partitioner and the backend, by what the program then computes in ExecuTorch's runtime."""

import coremltools as ct
import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.runtime import Runtime
from helpers.lowering import Counter, delegates, lower, target, two_layers
from torch import Tensor, nn

from partitioner import CoreMLBackend, CoreMLPartitioner, errors, host
from partitioner.options.compile_specs import WeightSharing

X = torch.linspace(-1, 1, 6).reshape(2, 3)
FLOAT32 = {"compute_precision": ct.precision.FLOAT32}
EXACT = {"rtol": 1e-6, "atol": 1e-6}
SLOW = pytest.mark.slow


def specs(**options) -> list:
    return CoreMLBackend.generate_compile_specs(**{**FLOAT32, **options})


def agrees(manager, model: nn.Module, *inputs: Tensor, atol: float = 1e-6) -> None:
    (result,) = host.run(manager.to_executorch().buffer, *inputs)
    torch.testing.assert_close(result, model(*inputs).detach(), rtol=1e-6, atol=atol)


PARTITIONER = {
    "nothing": {},
    "skip_ops_for_coreml_delegation": {"skip_ops_for_coreml_delegation": ["aten.relu.default"]},
    "lower_full_graph": {"lower_full_graph": True},
    "take_over_constant_data": {"take_over_constant_data": False},
    "take_over_mutable_buffer": {"take_over_mutable_buffer": False},
    "on_error": {"on_error": "fallback"},
    "delegate_islands": {"delegate_islands": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", PARTITIONER.values(), ids=PARTITIONER.keys())
def test_arguments_of_the_partitioner_do_not_change_results(arguments: dict) -> None:
    model = two_layers()
    agrees(lower(model, (X,), partitioner=CoreMLPartitioner(compile_specs=specs(), **arguments)), model, X)


QUANTIZER = {"mode": "linear_symmetric", "dtype": "int8", "granularity": "per_channel", "weight_threshold": 0}
BACKEND = {
    "float16": ({"compute_precision": ct.precision.FLOAT16}, 2e-3),
    "compute unit": ({"compute_unit": ct.ComputeUnit.CPU_ONLY}, 1e-6),
    "model type": ({"model_type": CoreMLBackend.MODEL_TYPE.MODEL}, 1e-6),
    "weights quantized afterwards": (
        {"op_linear_quantizer_config": QUANTIZER, "minimum_deployment_target": ct.target.iOS16},
        2e-2,
    ),
    "weights quantized afterwards in 4 bits": (
        {
            "op_linear_quantizer_config": {**QUANTIZER, "dtype": "int4"},
            "minimum_deployment_target": ct.target.iOS18,
        },
        2e-1,
    ),
    "passes": ({"pass_names": ["common::const_elimination", "common::dead_code_elimination"]}, 1e-6),
}


@pytest.mark.slow
@pytest.mark.parametrize(("options", "atol"), BACKEND.values(), ids=BACKEND.keys())
def test_options_of_the_backend_run(options: dict, atol: float) -> None:
    model = two_layers()
    manager = lower(model, (X,), partitioner=CoreMLPartitioner(compile_specs=specs(**options)))
    agrees(manager, model, X, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize(
    "minimum", [ct.target.iOS15, ct.target.iOS16, ct.target.iOS17, ct.target.iOS18, ct.target.iOS26]
)
def test_every_deployment_target_runs(minimum: ct.target) -> None:
    model = two_layers()
    manager = lower(model, (X,), minimum_deployment_target=minimum, **FLOAT32)
    assert target(manager) == minimum
    agrees(manager, model, X)


def test_the_device_reads_the_compute_unit() -> None:
    partitioner = CoreMLPartitioner(compile_specs=specs(compute_unit=ct.ComputeUnit.CPU_AND_NE))
    pte = lower(two_layers(), (X,), partitioner=partitioner).to_executorch().buffer
    (plan,) = deserialize_pte_binary(pte).program.execution_plan
    (delegate,) = plan.delegates
    assert {spec.key: bytes(spec.value) for spec in delegate.compile_specs}["compute_units"] == b"cpu_and_ne"


@pytest.mark.skipif("sys.platform == 'darwin'", reason="macOS compiles models")
def test_compiling_off_macos_is_refused_wherever_it_is_asked_for() -> None:
    compiled = CoreMLBackend.MODEL_TYPE.COMPILED_MODEL
    with pytest.raises(errors.CompileSpecError, match=r"needs macOS.*use CoreMLBackend\.MODEL_TYPE\.MODEL"):
        CoreMLPartitioner(compile_specs=specs(model_type=compiled))
    with pytest.raises(errors.CompileSpecError, match="needs macOS"):
        CoreMLPartitioner(compile_specs=[CoreMLBackend.generate_model_type_compile_spec(compiled)])


@pytest.mark.parametrize("take_over", [True, False], ids=["state", "inputs and outputs"])
def test_mutable_buffers_keep_their_values_between_calls(take_over: bool) -> None:
    partitioner = CoreMLPartitioner(compile_specs=specs(), take_over_mutable_buffer=take_over)
    manager = lower(Counter(), (torch.ones(4, 3),), partitioner=partitioner)
    assert target(manager) == (ct.target.iOS18 if take_over else ct.target.iOS15)
    host.enable()
    method = Runtime.get().load_program(manager.to_executorch().buffer).load_method("forward")
    totals = [method.execute([torch.full((4, 3), value)])[0].clone() for value in (1.0, 2.0, 4.0)]
    assert [float(total.max()) for total in totals] == [2.0, 6.0, 14.0]


def ranged(model: nn.Module) -> torch.export.ExportedProgram:
    size = torch.export.Dim("n", min=2, max=16)
    return torch.export.export(model, (torch.zeros(4, 3),), dynamic_shapes=({0: size},))


def test_dynamic_shapes_run_at_every_size_of_their_range() -> None:
    model = two_layers()
    manager = to_edge_transform_and_lower(ranged(model), partitioner=[CoreMLPartitioner(compile_specs=specs())])
    for rows in (2, 5, 16):
        agrees(manager, model, torch.linspace(-1, 1, rows * 3).reshape(rows, 3))
    with pytest.raises(host.errors.HostError):
        host.run(manager.to_executorch().buffer, torch.zeros(17, 3))


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * 2 + y


def test_enumerated_shapes_run_and_others_do_not() -> None:
    model = two_layers()
    program = ranged(model)
    (name,) = program.graph_signature.user_inputs
    shapes = CoreMLBackend.generate_enumerated_shapes_compile_spec(program, {str(name): [[2, 3], [8, 3]]})
    partitioner = CoreMLPartitioner(compile_specs=[*specs(), shapes], lower_full_graph=True)
    manager = to_edge_transform_and_lower(program, partitioner=[partitioner])
    for rows in (2, 8):
        agrees(manager, model, torch.linspace(-1, 1, rows * 3).reshape(rows, 3))
    with pytest.raises(host.errors.HostError, match="4"):
        host.run(manager.to_executorch().buffer, torch.zeros(4, 3))


def test_several_inputs_with_enumerated_shapes_need_ios18() -> None:
    size = torch.export.Dim("n", min=2, max=16)
    program = torch.export.export(Sum(), (torch.zeros(4, 3), torch.ones(4, 3)), dynamic_shapes=({0: size}, {0: size}))
    shapes = CoreMLBackend.generate_enumerated_shapes_compile_spec(
        program, {"x": [[2, 3], [8, 3]], "y": [[2, 3], [8, 3]]}
    )

    def lowered(minimum: ct.target):
        partitioner = CoreMLPartitioner(
            compile_specs=[*specs(minimum_deployment_target=minimum), shapes], lower_full_graph=True
        )
        return to_edge_transform_and_lower(program, partitioner=[partitioner])

    with pytest.raises(errors.DeploymentTargetError, match="inputs x, y all have enumerated shapes"):
        lowered(ct.target.iOS17)
    agrees(lowered(ct.target.iOS18), Sum(), torch.ones(8, 3), torch.ones(8, 3))


@pytest.mark.parametrize("sharing", [WeightSharing.POSITIONAL, pytest.param(WeightSharing.DISABLED, marks=SLOW)])
def test_methods_run_with_and_without_shared_weights(sharing: WeightSharing) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 4).eval()
    inputs = {"decode": torch.ones(1, 3), "prefill": torch.linspace(-1, 1, 24).reshape(8, 3)}
    programs = {name: torch.export.export(layer, (x,)) for name, x in inputs.items()}
    strategy = CoreMLBackend.generate_multimethod_weight_sharing_strategy_compile_spec(sharing)
    partitioner = CoreMLPartitioner(compile_specs=[*specs(), strategy])
    manager = to_edge_transform_and_lower(programs, partitioner=[partitioner])
    assert [len(delegates(manager, name)) for name in inputs] == [1, 1]
    assert len(partitioner.report()) == 2
    buffer = manager.to_executorch().buffer
    for name, x in inputs.items():
        (result,) = host.run(buffer, x, method=name)
        torch.testing.assert_close(result, layer(x).detach(), **EXACT)
