"""Prepared models under torch.compile, and on a GPU where there is one."""

from collections.abc import Callable

import pytest
import torch
from helpers.trained_networks import IMAGE, batches, everything, loss_of
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.testing import assert_close

from coreml_quantizer import CoreMLQuantizer
from coreml_quantizer.qat.quantizers.estimated import FakeQuantize

from .test_prepare_qat import CONFIGS, prepared_for

COMPILED = ("w8a8", "w8a8-symmetric", "per-tensor-weights", "learnable", "w4a8")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def without_dropout() -> nn.Module:
    """Random numbers of compiled code are others than those of eager mode."""
    model = everything()
    model.stem[3] = nn.Identity()  # type: ignore[operator]
    return model


def small() -> nn.Module:
    """Little code to compile."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    return nn.Sequential(*layers).train()


def step(model: nn.Module, quantizer: CoreMLQuantizer, prepared: GraphModule, batch: Tensor) -> Tensor:
    """Takes one training step and returns the output; `model` may be `prepared` compiled."""
    output: Tensor = model(batch)
    prepared.zero_grad()
    loss_of(output, batch).backward()
    with torch.no_grad():
        for parameter in prepared.parameters():
            if parameter.grad is not None:
                parameter -= 0.02 * parameter.grad
    quantizer.step()
    return output.detach()


def largest_error(reference: GraphModule, output: Tensor) -> float:
    """One step of the output's grid, which another order of float32 additions can cost, or 2 % where it is fine."""
    last = quantizer_of_output(reference)
    spread = (output.max() - output.min()).item()
    return max(0.02 * spread, 1.01 * last.calculate_qparams()[0].item() if last.quantizes and last.known else 0.0)


def quantizer_of_output(prepared: GraphModule) -> FakeQuantize:
    calls = [node for node in prepared.graph.nodes if node.op == "call_module"]
    modules = [prepared.get_submodule(str(call.target)) for call in calls]
    return [module for module in modules if isinstance(module, FakeQuantize)][-1]


def assert_steps_are_alike(config: object, make: Callable[[], nn.Module], backend: str) -> None:
    """Compares each of some steps, from the same state: what a rounding boundary magnifies does not add up."""
    prepared, quantizer = prepared_for(config, make())
    reference, reference_quantizer = prepared_for(config, make())
    compiled = torch.compile(prepared, fullgraph=True, backend=backend)
    for batch in batches(6):
        prepared.load_state_dict(reference.state_dict())
        found, expected = (
            step(compiled, quantizer, prepared, batch),
            step(reference, reference_quantizer, reference, batch),
        )
        # Of both, because asking for learned scales also notes them in the state.
        bound = min(largest_error(prepared, found), largest_error(reference, expected))
        assert (found - expected).abs().max() <= bound
        ours, theirs = prepared.state_dict(), reference.state_dict()
        for name, value in theirs.items():
            assert_close(
                ours[name].double(), value.double(), rtol=0.02, atol=2e-3, msg=lambda text, n=name: f"{n}: {text}"
            )


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_nothing_in_a_prepared_model_breaks_the_graph(name: str) -> None:
    assert_steps_are_alike(CONFIGS[name], without_dropout, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["w8a8", "learnable"])
def test_compiled_training_is_eager_training(name: str) -> None:
    assert_steps_are_alike(CONFIGS[name], small, "inductor")


@pytest.mark.slow
def test_milestones_act_on_compiled_models() -> None:
    assert_steps_are_alike({"global_config": {"milestones": [0, 1, 4, 2]}}, without_dropout, "aot_eager")


@needs_gpu
@pytest.mark.parametrize("name", CONFIGS)
def test_training_on_a_gpu_is_training_on_a_cpu(name: str) -> None:
    prepared, quantizer = prepared_for(CONFIGS[name], without_dropout())
    reference, reference_quantizer = prepared_for(CONFIGS[name], without_dropout())
    prepared.cuda()
    for batch in batches(6):
        prepared.load_state_dict(reference.state_dict())
        found = step(prepared, quantizer, prepared, batch.cuda()).cpu()
        expected = step(reference, reference_quantizer, reference, batch)
        assert (found - expected).abs().max() <= largest_error(reference, expected)


@needs_gpu
def test_a_step_on_a_gpu_waits_for_nothing() -> None:
    """Reading a value of the device raises while torch looks for it."""
    prepared, quantizer = prepared_for("w8a8", without_dropout())
    prepared.cuda()
    batch = torch.randn(IMAGE, device="cuda")
    step(prepared, quantizer, prepared, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(prepared, quantizer, prepared, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.slow
def test_compiled_training_on_a_gpu_is_eager_training() -> None:
    prepared, quantizer = prepared_for("w8a8", without_dropout())
    reference, reference_quantizer = prepared_for("w8a8", without_dropout())
    prepared.cuda()
    reference.cuda()
    compiled = torch.compile(prepared, fullgraph=True)
    for batch in batches(6):
        prepared.load_state_dict(reference.state_dict())
        found = step(compiled, quantizer, prepared, batch.cuda())
        expected = step(reference, reference_quantizer, reference, batch.cuda())
        assert (found - expected).abs().max() <= largest_error(reference, expected)
