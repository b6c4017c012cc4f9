"""Quantized programs keep their integers, types and values."""

from dataclasses import replace

import coremltools as ct
import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from helpers.lowering import DTYPE_NAMES, Function, blob, calls, lower, operations, target
from helpers.minimal_quantizer import ACTIVATION, quantized
from helpers.models import signal_to_noise
from torch import nn

from partitioner import CoreMLBackend, CoreMLPartitioner, host
from partitioner import lower as lower_whole

WEIGHT_ONLY = {"activation": None}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, groups=2),
        nn.Hardswish(),
        nn.Flatten(),
        nn.Linear(16 * 4, 5),
    ).eval()


INPUTS = (torch.linspace(-2, 2, 2 * 3 * 64).reshape(2, 3, 8, 8).sin(),)


@pytest.mark.parametrize(
    ("options", "given", "expected"),
    [
        ({}, None, ct.target.iOS17),
        ({}, ct.target.iOS18, ct.target.iOS18),
        (WEIGHT_ONLY, None, ct.target.iOS16),
        (WEIGHT_ONLY, ct.target.iOS17, ct.target.iOS17),
        (WEIGHT_ONLY, ct.target.iOS18, ct.target.iOS18),
        ({**WEIGHT_ONLY, "weight_range": (-8, 7)}, None, ct.target.iOS18),
    ],
    ids=["w8a8", "w8a8 iOS18", "w8", "w8 iOS17", "w8 iOS18", "w4"],
)
def test_quantized_networks_are_one_exact_delegate(options: dict, given, expected: ct.target) -> None:
    model = quantized(network(), INPUTS, **options)
    manager = lower(model, INPUTS, minimum_deployment_target=given, compute_precision=ct.precision.FLOAT32)
    assert calls(manager) == {"executorch_call_delegate": 1}
    assert target(manager) == expected
    (result,) = host.load(blob(manager), policy="float32").run(list(INPUTS))
    assert signal_to_noise(model(*INPUTS).detach(), result) > 100


def test_activations_are_quantized_in_the_model() -> None:
    types = [operation.type for operation in operations(lower(quantized(network(), INPUTS), INPUTS))]
    assert types.count("quantize") >= 3
    assert types.count("dequantize") >= types.count("quantize")


def small_weights() -> nn.Module:
    """A layer whose int8 weights all happen to fit into 4 bits."""
    model = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(4) * 127)
        model.weight[0, 1:] = torch.tensor([1.0, 2.0, 3.0])
    converted = quantized(model, (torch.ones(1, 4),), activation=None)
    for name, buffer in converted.named_buffers():
        if buffer.dtype == torch.int8:
            converted.get_buffer(name).copy_(buffer.clamp(-7, 7))
    return converted


def stored_bits(manager) -> set[str]:
    """Declared types of all integer constants with more than one element."""
    found = set()
    for operation in operations(manager):
        if not operation.type.startswith("constexpr_"):
            continue
        for attribute in ("data", "quantized_data"):
            if attribute in operation.attributes:
                found.add(DTYPE_NAMES[operation.attributes[attribute].type.tensorType.dataType])
            if attribute in operation.inputs:
                for argument in operation.inputs[attribute].arguments:
                    found.add(DTYPE_NAMES[argument.value.type.tensorType.dataType])
    return found


def test_stored_types_follow_the_declared_range_and_not_the_values() -> None:
    inputs = (torch.ones(1, 4),)
    assert stored_bits(lower(small_weights(), inputs, minimum_deployment_target=ct.target.iOS18)) == {"INT8"}
    four_bits = quantized(nn.Linear(4, 4), inputs, activation=None, weight_range=(-8, 7))
    assert stored_bits(lower(four_bits, inputs)) == {"INT4"}


def test_a_narrow_range_of_activations_is_kept() -> None:
    narrow = replace(ACTIVATION, quant_max=63)
    model = quantized(network(), INPUTS, activation=narrow)
    louder = tuple(value * 4 for value in INPUTS)
    manager = lower(model, INPUTS, compute_precision=ct.precision.FLOAT32)
    (result,) = host.load(blob(manager), policy="float32").run(list(louder))
    assert signal_to_noise(model(*louder).detach(), result) > 100


@pytest.mark.parametrize(
    ("axis", "low", "high", "dtype"),
    [(0, 0, 63, torch.uint8), (1, -8, 7, torch.int8), (-1, -127, 127, torch.int8), (1, 0, 255, torch.uint8)],
)
def test_a_narrow_range_with_a_scale_per_channel_is_kept(axis: int, low: int, high: int, dtype: torch.dtype) -> None:
    x = torch.linspace(-9, 9, 60).reshape(3, 4, 5)
    channels = x.shape[axis]
    scales = 2.0 ** -torch.arange(1, channels + 1)
    offsets = torch.arange(channels) % 3 + max(low, 0)

    def rounded(x: torch.Tensor) -> torch.Tensor:
        operations = torch.ops.quantized_decomposed
        positive = axis % x.dim()  # PyTorch's own kernel takes no other
        integers = operations.quantize_per_channel(x, scales, offsets, positive, low, high, dtype)
        return operations.dequantize_per_channel(integers, scales, offsets, positive, low, high, dtype)

    model = Function(rounded)
    program = torch.export.export(model, (x,))
    specs = CoreMLBackend.generate_compile_specs(compute_precision=ct.precision.FLOAT32)
    direct = lower_whole(program, compile_specs=specs)
    detour = to_edge_transform_and_lower(program, partitioner=[CoreMLPartitioner(compile_specs=specs)])
    for buffer in (direct.buffer, detour.to_executorch().buffer):
        (result,) = host.run(buffer, x)
        torch.testing.assert_close(result, model(x), rtol=0, atol=0)


def test_specs_given_to_quantized_programs_are_not_changed() -> None:
    specs = CoreMLBackend.generate_compile_specs()
    before = [(spec.key, spec.value) for spec in specs]
    lower(quantized(network(), INPUTS), INPUTS, partitioner=CoreMLPartitioner(compile_specs=specs))
    assert [(spec.key, spec.value) for spec in specs] == before


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="w8a8"),
        pytest.param(WEIGHT_ONLY, id="w8", marks=pytest.mark.slow),
        pytest.param({**WEIGHT_ONLY, "weight_range": (-8, 7)}, id="w4", marks=pytest.mark.slow),
    ],
)
def test_the_direct_way_gives_the_same_numbers(options: dict) -> None:
    program = torch.export.export(quantized(network(), INPUTS, **options), INPUTS)
    direct = lower_whole(program)
    assert direct.direct
    detour = to_edge_transform_and_lower(program, partitioner=[CoreMLPartitioner()]).to_executorch()
    for policy in ("float32", "storage16"):
        (ours,) = host.run(direct.buffer, *INPUTS, policy=policy)
        (theirs,) = host.run(detour.buffer, *INPUTS, policy=policy)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_products_and_sums_that_become_batch_norms_keep_their_factors() -> None:
    """Core ML Tools adds an epsilon to the variance of one: 5e-6 less, and one value in 2000 on another step."""
    generator = torch.Generator().manual_seed(0)
    factor, summand = (torch.randn(1, 32, 1, 1, generator=generator).half().float() for _ in range(2))
    scale = 2.0**-5

    def rounded(x: torch.Tensor) -> torch.Tensor:
        integers = torch.ops.quantized_decomposed.quantize_per_tensor(x, scale, 0, 0, 255, torch.uint8)
        return torch.ops.quantized_decomposed.dequantize_per_tensor(integers, scale, 0, 0, 255, torch.uint8)

    model = Function(lambda x: rounded((rounded(x) * factor + summand).relu()))
    x = torch.rand(1, 32, 64, 64, generator=generator) * 8
    manager = lower(model, (x,))
    (result,) = host.run(manager.to_executorch().buffer, x, policy="float32")
    assert "batch_norm" in {operation.type for operation in operations(manager)}
    assert torch.equal(result, model(x))


@pytest.mark.parametrize(("scale", "taken_apart"), [(None, False), (24**-0.5, False), (0.25, True)])
def test_attention_of_the_usual_scale_is_one_operation_from_ios18_on(scale: float | None, taken_apart: bool) -> None:
    """Models of transformers name the usual scale."""
    x = torch.randn(1, 2, 5, 24, generator=torch.Generator().manual_seed(0))
    model = Function(lambda x: nn.functional.scaled_dot_product_attention(x, x + 1, x, scale=scale))
    manager = lower(model, (x,), minimum_deployment_target=ct.target.iOS18)
    assert ("matmul" in {operation.type for operation in operations(manager)}) is taken_apart
    (result,) = host.run(manager.to_executorch().buffer, x)
    torch.testing.assert_close(result, model(x), rtol=0, atol=2.0**-8)
