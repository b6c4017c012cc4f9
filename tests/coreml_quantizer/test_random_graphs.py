"""Random graphs prepare, calibrate, convert and lower, and are as exact as their scales promise.

Two statements a graph, each with a bound that `error_bounds` derives: the converted graph is as close to the calibrated
one as its quantizers allow, and the program that was lowered, run in float32, gives what the converted graph gives.
"""

from typing import Any

import coremltools as ct
import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from helpers.error_bounds import error_bound, rounding_bound
from helpers.graphs import QDQ, calls, prepare
from helpers.random_graphs import SHAPE, STEPS, Drawn, networks
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from partitioner import CoreMLBackend, CoreMLPartitioner, host

MIN_MAX = {"global_config": {"activation_observer": "min_max"}}
HALF_OUTPUT = 2.0**-11
"""Outputs are float16: relative, and beside it the smallest subnormal."""
SMALLEST_HALF = 2.0**-24

COMMON: dict[str, Any] = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


def calibrated(model: nn.Module) -> tuple[GraphModule, tuple[Tensor], Tensor]:
    """Returns the converted graph, its input, and what the calibrated graph gives for it."""
    inputs = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)),)
    prepared = prepare(model, inputs, MIN_MAX)
    with torch.no_grad():
        expected = prepared(*inputs)
        return convert_pt2e(prepared), inputs, expected


def check_scales(model: nn.Module) -> tuple[GraphModule, tuple[Tensor]]:
    converted, inputs, expected = calibrated(model)
    assert calls(converted, QDQ.quantize_per_tensor)
    with torch.no_grad():
        excess = (converted(*inputs) - expected).abs() - error_bound(converted, *inputs)
    assert float(excess.max()) <= 0, f"{model.steps}: the error is {float(excess.max()):.2e} above its bound"
    return converted, inputs


def check_program(converted: GraphModule, inputs: tuple[Tensor]) -> None:
    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS17)
    edge = to_edge_transform_and_lower(
        torch.export.export(converted, inputs), partitioner=[CoreMLPartitioner(compile_specs=specs)]
    )
    targets = [str(node.target) for node in edge.exported_program().graph.nodes if node.op == "call_function"]
    assert [target for target in targets if "getitem" not in target] == ["executorch_call_delegate"]
    (result,) = host.run(bytes(edge.to_executorch().buffer), *inputs, policy="float32")
    with torch.no_grad():
        expected = converted(*inputs)
        bound = rounding_bound(converted, *inputs) * (1 + HALF_OUTPUT)
    excess = (result - expected).abs() - bound - HALF_OUTPUT * expected.abs() - SMALLEST_HALF
    assert float(excess.max()) <= 0, f"the program is {float(excess.max()):.2e} outside of what rounding allows"


@settings(max_examples=15, **COMMON)
@given(networks(5))
def test_the_error_stays_within_what_the_scales_imply(model: Drawn) -> None:
    check_scales(model)


@settings(max_examples=2, **COMMON)
@given(networks(5))
def test_programs_give_what_the_converted_graph_gives(model: Drawn) -> None:
    check_program(*check_scales(model))


@pytest.mark.slow
@settings(max_examples=100, **COMMON)
@given(networks(8))
def test_many_random_graphs(model: Drawn) -> None:
    check_program(*check_scales(model))


@pytest.mark.parametrize("name", STEPS)
def test_every_step_alone(name: str) -> None:
    check_scales(Drawn([("conv", 0), (name, 0)], 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_every_step_alone_lowers(name: str) -> None:
    check_program(*check_scales(Drawn([("conv", 0), (name, 0)], 0)))


def test_the_bound_is_no_wider_than_it_need_be() -> None:
    """One convolution: half a step for the input and the weights through it, and half a step of the output."""
    converted, inputs, expected = calibrated(Drawn([("conv", 0)], 0))
    bound = error_bound(converted, *inputs)
    error = (converted(*inputs) - expected).abs()
    assert float(bound.max()) < 0.1 * float(expected.abs().max())
    assert float(error.max()) > 0.05 * float(bound.max())


def test_a_wrong_scale_breaks_the_bound() -> None:
    converted, inputs, expected = calibrated(Drawn([("conv", 0)], 0))
    bound = error_bound(converted, *inputs)
    last = calls(converted, QDQ.dequantize_per_tensor)[-1]
    last.update_arg(1, last.args[1] * 1.25)
    converted.recompile()
    assert bool(((converted(*inputs) - expected).abs() > bound).any())
