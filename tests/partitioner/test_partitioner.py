"""What the partitioner takes, leaves and says, and that it is a plain reusable object."""

import pickle

import coremltools as ct
import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from executorch.exir._serialize._program import deserialize_pte_binary
from helpers.lowering import Counter, Function, blob, calls, delegates, lower, operations, spec, target, two_layers
from helpers.models import signal_to_noise
from torch import Tensor, nn

from partitioner import CoreMLBackend, CoreMLPartitioner, host

X = torch.linspace(-1, 1, 6).reshape(2, 3)
FLOAT32 = CoreMLBackend.generate_compile_specs(compute_precision=ct.precision.FLOAT32)


def test_partitioner_is_readable_picklable_and_reusable() -> None:
    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS16)
    partitioner = CoreMLPartitioner(compile_specs=specs, skip_ops_for_coreml_delegation=["aten.cos.default"])
    assert "min_deployment_target=7" in repr(partitioner)
    assert "skip_ops_for_coreml_delegation=['aten.cos.default']" in repr(partitioner)
    copied = pickle.loads(pickle.dumps(partitioner))
    assert repr(copied) == repr(partitioner)
    blobs = [blob(lower(two_layers(), (X,), partitioner=item)) for item in (partitioner, partitioner, copied)]
    assert blobs[0] == blobs[1] == blobs[2]


def test_a_program_can_be_lowered_twice() -> None:
    program = torch.export.export(Counter(), (torch.ones(4, 3),))
    tables = dict(program.state_dict), dict(program.constants)
    first, second = (to_edge_transform_and_lower(program, partitioner=[CoreMLPartitioner()]) for _ in range(2))
    assert (dict(program.state_dict), dict(program.constants)) == tables
    assert blob(first) == blob(second)


def test_skipped_operations_stay_outside_and_are_reported() -> None:
    partitioner = CoreMLPartitioner(skip_ops_for_coreml_delegation=["aten.relu.default"])
    manager = lower(two_layers(), (X,), partitioner=partitioner)
    assert len(delegates(manager)) == 2
    (rejection,) = partitioner.rejections
    assert rejection.op == "aten.relu.default"
    assert rejection.reason == "listed in skip_ops_for_coreml_delegation"
    assert "File " in str(rejection)
    lower(nn.Linear(3, 3), (X,), partitioner=partitioner)
    assert partitioner.rejections == ()


REFUSED = {
    "acosh": (lambda x: torch.acosh(x + 2), "aten.acosh.default", "no such operation"),
    "asinh": (lambda x: torch.asinh(x), "aten.asinh.default", "no such operation"),
    "diagonal": (lambda x: torch.diagonal(x) + 1, "aten.diagonal_copy.default", "wrong values"),
    "divisor": (
        lambda x: nn.functional.avg_pool2d(x[None], 2, divisor_override=3),
        "aten.avg_pool2d.default",
        "divisor_override=3",
    ),
    "indices": (
        lambda x: nn.functional.max_pool2d(x[None], 2, return_indices=True)[1],
        "aten.max_pool2d_with_indices.default",
        "no indices",
    ),
    "int8": (lambda x: (x * 9).to(torch.int8) + 1, "dim_order_ops._to_dim_order_copy.default", "torch.int8 outputs"),
}


@pytest.mark.parametrize(("function", "op", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_core_ml_gets_wrong_is_refused_with_a_reason(function, op: str, reason: str) -> None:
    partitioner = CoreMLPartitioner()
    lower(Function(function), (X,), partitioner=partitioner)
    reasons = {rejection.op: rejection.reason for rejection in partitioner.rejections}
    assert reason in reasons[op]


WIDE_INTEGERS = {
    "scalar": lambda x: (x * 9).long() + 2**40,
    "negative": lambda x: (x * 9).long() * -(2**31 + 1),
    "tensor": lambda x: (x * 9).long() + torch.tensor([2**40, 1, 2]),
    "comparison": lambda x: ((x * 9).long() < 2**40).float(),
    "fill": lambda x: x.long() + torch.full((2, 3), 2**33, dtype=torch.long),
    "float": lambda x: x + 2**40,
}


@pytest.mark.parametrize("function", WIDE_INTEGERS.values(), ids=WIDE_INTEGERS.keys())
def test_integers_outside_int32_stay_outside(function) -> None:
    partitioner = CoreMLPartitioner(compile_specs=FLOAT32)
    manager = lower(Function(function), (X,), partitioner=partitioner)
    assert any("no integers outside int32" in rejection.reason for rejection in partitioner.rejections)
    (result,) = host.run(manager.to_executorch().buffer, X)
    torch.testing.assert_close(result, function(X), rtol=0, atol=0)


def test_the_largest_int32_and_open_slices_are_taken() -> None:
    def function(x: Tensor) -> Tensor:
        return (x[:, 1:] * 9).abs().long() - (2**31 - 1)

    partitioner = CoreMLPartitioner(compile_specs=FLOAT32)
    manager = lower(Function(function), (X,), partitioner=partitioner)
    assert partitioner.rejections == ()
    (result,) = host.run(manager.to_executorch().buffer, X)
    torch.testing.assert_close(result, function(X), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bfloat16])
def test_inputs_of_dtypes_that_core_ml_lacks_are_converted_outside(dtype: torch.dtype) -> None:
    partitioner = CoreMLPartitioner()
    manager = lower(Function(lambda x: x.to(torch.float32) * 2 + 1), (X.to(dtype),), partitioner=partitioner)
    assert len(delegates(manager)) == 1
    (rejection,) = partitioner.rejections
    assert str(dtype) in rejection.reason


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64]
)
def test_inputs_of_all_other_dtypes_are_taken(dtype: torch.dtype) -> None:
    manager = lower(Function(lambda x: x.to(torch.float32) * 2 + 1), (X.to(dtype),))
    assert calls(manager) == {"executorch_call_delegate": 1}
    assert target(manager) == (ct.target.iOS16 if dtype == torch.float16 else ct.target.iOS15)


def test_mutable_buffers_become_states_or_stay_outside() -> None:
    taken = lower(Counter(), (torch.ones(4, 3),))
    assert target(taken) == ct.target.iOS18
    (function,) = spec(taken).mlProgram.functions.values()
    assert "stateType" in str(function.inputs)
    left = lower(Counter(), (torch.ones(4, 3),), partitioner=CoreMLPartitioner(take_over_mutable_buffer=False))
    assert target(left) == ct.target.iOS15
    assert len(spec(left).description.input) == 2
    assert deserialize_pte_binary(left.to_executorch().buffer).program.execution_plan


EQUAL_OUTPUTS = {
    "copies of an input": lambda x: (x.clone(), x.clone(), x * 2),
    "computations": lambda x: (torch.relu(x) + 1, torch.relu(x) + 1),
    "copies of a value": lambda x: ((x * 2) + 0, (x * 2).clone(), x * 2),
}


@pytest.mark.parametrize("pass_names", [None, ["common::noop_elimination", "common::remove_redundant_ops"]])
@pytest.mark.parametrize("function", EQUAL_OUTPUTS.values(), ids=EQUAL_OUTPUTS.keys())
def test_equal_outputs_stay_distinct_and_run(function, pass_names: list[str] | None) -> None:
    manager = lower(Function(function), (X,), compute_precision=ct.precision.FLOAT32, pass_names=pass_names)
    description = spec(manager).description
    names = [feature.name for feature in (*description.input, *description.output)]
    assert len(set(names)) == len(names)
    results = host.run(manager.to_executorch().buffer, X)
    torch.testing.assert_close(results, list(function(X)), rtol=0, atol=0)


def test_constants_stay_outside_on_request() -> None:
    manager = lower(nn.Linear(3, 4), (X,), partitioner=CoreMLPartitioner(take_over_constant_data=False))
    names = [feature.name for feature in spec(manager).description.input]
    assert {"p_weight", "p_bias"} < set(names)


def test_dynamic_shapes_become_ranges() -> None:
    shapes = {"input": {0: torch.export.Dim("n", min=2, max=16)}}
    program = torch.export.export(two_layers(), (torch.zeros(4, 3),), dynamic_shapes=shapes)
    manager = to_edge_transform_and_lower(program, partitioner=[CoreMLPartitioner()])
    (feature,) = spec(manager).description.input
    ranges = feature.type.multiArrayType.shapeRange.sizeRanges
    assert [(item.lowerBound, item.upperBound) for item in ranges] == [(2, 16), (3, 3)]


def test_enumerated_shapes_are_kept() -> None:
    shapes = {"input": {0: torch.export.Dim("n", min=2, max=16)}}
    program = torch.export.export(two_layers(), (torch.zeros(4, 3),), dynamic_shapes=shapes)
    specs = [CoreMLBackend.generate_enumerated_shapes_compile_spec(program, {"input": [[2, 3], [8, 3]]})]
    partitioner = CoreMLPartitioner(compile_specs=specs, lower_full_graph=True)
    (feature,) = spec(to_edge_transform_and_lower(program, partitioner=[partitioner])).description.input
    assert [list(item.shape) for item in feature.type.multiArrayType.enumeratedShapes.shapes] == [[2, 3], [8, 3]]


def test_weights_are_quantized_after_conversion_on_request() -> None:
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    config = {"mode": "linear_symmetric", "dtype": "int8", "granularity": "per_channel", "weight_threshold": 0}
    manager = lower(
        model, (torch.randn(1, 64),), minimum_deployment_target=ct.target.iOS16, op_linear_quantizer_config=config
    )
    assert "constexpr_affine_dequantize" in [operation.type for operation in operations(manager)]


def test_pooling_without_a_stride_strides_by_its_kernel() -> None:
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    model = Function(lambda x: nn.functional.max_pool2d(x, 2))
    (result,) = host.load(blob(lower(model, (x,)))).run([x])
    assert torch.equal(result, model(x))


def test_program_file_loads_and_holds_the_blob() -> None:
    manager = lower(two_layers(), (X,))
    program = deserialize_pte_binary(manager.to_executorch().buffer).program
    (plan,) = program.execution_plan
    (delegate,) = plan.delegates
    assert delegate.id == "CoreMLBackend"
    assert program.backend_delegate_data[delegate.processed.index].data == blob(manager)


def test_single_precision_is_exact_to_rounding() -> None:
    model = two_layers()
    manager = lower(model, (X,), compute_precision=ct.precision.FLOAT32)
    (result,) = host.load(blob(manager), policy="float32").run([X])
    assert signal_to_noise(model(X).detach(), result) > 120
