"""`prepare_qat_pt2e` with our quantizer: what trains is what is converted, and what runs."""

import copy
import time

import coremltools as ct
import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from helpers.models import signal_to_noise
from helpers.trained_networks import IMAGE, batches, everything, loss_of
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e import move_exported_model_to_eval, move_exported_model_to_train
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

from coreml_quantizer import (
    CalibrationError,
    CoreMLQuantizer,
    LayerConfig,
    QuantizerConfig,
    QuantizerError,
    WeightConfig,
    presets,
)
from coreml_quantizer.qat.layers.batch_norm import BatchNorm
from coreml_quantizer.qat.quantizers.estimated import FakeQuantize
from coreml_quantizer.qat.steps.trainee import Trainee
from partitioner import CoreMLBackend, CoreMLPartitioner, host

CONFIGS = {
    "w8a8": presets.w8a8(),
    "w8a8-symmetric": presets.w8a8_symmetric(),
    "per-tensor-weights": QuantizerConfig(LayerConfig(WeightConfig("int8", granularity="per_tensor"))),
    "learnable": {"global_config": {"algorithm": "learnable"}},
    "w8": presets.w8(),
    "w4a8": QuantizerConfig(LayerConfig(WeightConfig("int4"))),
    "block": QuantizerConfig(LayerConfig(WeightConfig("int4", block_size=4), None)),
    "lut2": QuantizerConfig(LayerConfig(WeightConfig("lut2"), None)),
}


def prepared_for(config: object, model: nn.Module | None = None) -> tuple[GraphModule, CoreMLQuantizer]:
    quantizer = CoreMLQuantizer(config)
    exported = torch.export.export(model or everything(), (torch.randn(IMAGE),)).module()
    return prepare_qat_pt2e(exported, quantizer), quantizer


def train(prepared: GraphModule, quantizer: CoreMLQuantizer, steps: int = 6, rate: float = 0.02) -> list[float]:
    optimizer = torch.optim.SGD(prepared.parameters(), lr=rate)
    losses = []
    for batch in batches(steps):
        loss = loss_of(prepared(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        quantizer.step()
        losses.append(loss.item())
    return losses


def largest_step(converted: GraphModule) -> float:
    """Returns the scale of the quantizer on the output."""
    last = [node for node in converted.graph.nodes if "dequantize_per_tensor" in str(node.target)][-1]
    return float(last.args[1])


@pytest.mark.parametrize("name", CONFIGS)
def test_converted_graph_is_what_was_trained(name: str) -> None:
    prepared, quantizer = prepared_for(CONFIGS[name])
    train(prepared, quantizer)
    move_exported_model_to_eval(prepared)
    (batch,) = batches(1, seed=1)
    with torch.no_grad():
        trained = prepared(batch)
        assert torch.equal(trained, prepared(batch)), "evaluation changes ranges or drops values"
        converted = convert_pt2e(prepared)
        result = converted(batch)
    quantized_output = CONFIGS[name] not in (CONFIGS["w8"], CONFIGS["block"], CONFIGS["lut2"])
    bound = 1.01 * largest_step(converted) if quantized_output else 2e-3 * trained.abs().max().item()
    assert (trained - result).abs().max() <= bound
    calls = {str(node.target) for node in converted.graph.nodes if node.op != "get_attr"}
    assert not any("batch_norm" in call or "dropout" in call for call in calls)


@pytest.mark.parametrize("name", ["w8a8", "w4a8"])
def test_the_program_agrees_with_the_converted_graph(name: str) -> None:
    prepared, quantizer = prepared_for(CONFIGS[name])
    train(prepared, quantizer)
    move_exported_model_to_eval(prepared)
    converted = convert_pt2e(prepared)
    (batch,) = batches(1, seed=1)
    target = ct.target.iOS17 if name == "w8a8" else ct.target.iOS18
    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=target)
    edge = to_edge_transform_and_lower(
        torch.export.export(converted, (batch,)), partitioner=[CoreMLPartitioner(compile_specs=specs)]
    )
    (result,) = host.run(bytes(edge.to_executorch().buffer), batch, policy="float32")
    assert signal_to_noise(converted(batch), result.float()) >= 50.0


def test_training_learns() -> None:
    prepared, quantizer = prepared_for("w8a8")
    losses = train(prepared, quantizer, steps=30, rate=0.05)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_batch_norm_statistics_are_those_of_the_float_model() -> None:
    """Statistics in training see quantized values, but of the unfolded layer: close to the float ones, not scaled."""
    model = everything()
    prepared, _ = prepared_for("w8a8", copy.deepcopy(model))
    with torch.no_grad():
        for batch in batches(5):
            model(batch)
            prepared(batch)
    for name in ("stem.1.running_mean", "stem.1.running_var", "branch.1.running_var", "up_norm.running_var"):
        expected, found = (dict(module.named_buffers())[name] for module in (model, prepared))
        assert torch.allclose(expected, found, rtol=0.05, atol=0.02), name
    assert prepared.get_buffer("lone.num_batches_tracked") == 5


def test_modes_switch_dropout_and_batch_norm() -> None:
    prepared, _ = prepared_for("w8a8")
    (batch,) = batches(1)
    prepared(batch)
    assert not torch.equal(prepared(batch), prepared(batch)), "dropout in training"
    move_exported_model_to_eval(prepared)
    before = prepared.get_buffer("lone.running_mean").clone()
    assert torch.equal(prepared(batch), prepared(batch))
    assert torch.equal(before, prepared.get_buffer("lone.running_mean"))
    move_exported_model_to_train(prepared)
    assert not torch.equal(prepared(batch), prepared(batch))
    assert not torch.equal(before, prepared.get_buffer("lone.running_mean"))


@pytest.mark.parametrize("length", [5, 6])
def test_a_batch_norm_over_positions_is_not_folded_into_a_linear_layer(length: int) -> None:
    """The channels of a linear layer are on the last axis, those of a batch norm on axis 1, of any size."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(length), nn.ReLU(), nn.Linear(6, 3))
    nn.init.uniform_(model[1].weight, 0.1, 3.0)
    sequences = torch.randn(8, length, 4) * torch.linspace(0.2, 3.0, length)[:, None]
    exported = torch.export.export(copy.deepcopy(model), (sequences,)).module()
    quantizer = CoreMLQuantizer("w8a8")
    prepared = prepare_qat_pt2e(exported, quantizer)
    for _ in range(5):
        prepared(sequences)
        model(sequences)
        quantizer.step()
    move_exported_model_to_eval(prepared)
    with torch.no_grad():
        trained, expected = prepared(sequences), model.eval()(sequences)
        converted = convert_pt2e(prepared)
        result = converted(sequences)
    assert signal_to_noise(expected, trained) >= 25.0
    assert (trained - result).abs().max() <= 1.01 * largest_step(converted)


def test_a_channel_that_batch_norm_switches_off_stays_off() -> None:
    """Many networks start residual branches with a weight of zero, which must neither divide by zero nor stick."""
    model = everything()
    nn.init.zeros_(model.branch[1].weight)  # type: ignore[union-attr, index]
    prepared, _ = prepared_for("w8a8", model)
    (batch,) = batches(1)
    output = prepared(batch)
    assert torch.isfinite(output).all()
    loss_of(output, batch).backward()
    gradient = prepared.get_parameter("branch.1.weight").grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    move_exported_model_to_eval(prepared)
    trained = prepared(batch)
    converted = convert_pt2e(prepared)
    assert (trained - converted(batch)).abs().max() <= 1.01 * largest_step(converted)


def test_neither_preparing_nor_converting_traces_patterns() -> None:
    start = time.perf_counter()
    prepared, quantizer = prepared_for("w8a8")
    train(prepared, quantizer, steps=1)
    convert_pt2e(prepared)
    # torchao's batch-norm patterns alone take ten times as long.
    assert time.perf_counter() - start < 10.0


def test_a_model_exported_in_eval_mode_trains_with_frozen_statistics() -> None:
    prepared, quantizer = prepared_for("w8a8", everything().eval())
    before = prepared.get_buffer("stem.1.running_mean").clone()
    train(prepared, quantizer, steps=2)
    assert torch.equal(before, prepared.get_buffer("stem.1.running_mean"))
    move_exported_model_to_train(prepared)
    train(prepared, quantizer, steps=2)
    assert not torch.equal(before, prepared.get_buffer("stem.1.running_mean"))
    move_exported_model_to_eval(prepared)
    (batch,) = batches(1)
    trained = prepared(batch)
    converted = convert_pt2e(prepared)
    assert (trained - converted(batch)).abs().max() <= 1.01 * largest_step(converted)


def test_step_without_a_model_is_refused() -> None:
    with pytest.raises(QuantizerError, match="prepare_qat_pt2e"):
        CoreMLQuantizer().step()
    with pytest.raises(QuantizerError, match="does not exist any more"):
        Trainee([BatchNorm(0.1, 1e-5)]).step()


def test_values_that_are_not_finite_are_named() -> None:
    prepared, _ = prepared_for("w8a8")
    with pytest.raises(CalibrationError, match="not-a-number or infinite values in training"):
        prepared(torch.full(IMAGE, torch.nan))


def test_steps_find_values_that_are_not_finite() -> None:
    """Where forward passes do not look, because that would wait for the device."""
    prepared, quantizer = prepared_for("w8a8")
    prepared(batches(1)[0])
    next(module for module in prepared.modules() if isinstance(module, FakeQuantize)).scale.fill_(torch.nan)
    for _ in range(99):
        quantizer.step()
    with pytest.raises(CalibrationError, match="not-a-number or infinite values in training"):
        quantizer.step()


def test_a_model_without_batch_norm_or_dropout_trains() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.layer(x.mean((1, 2)))
            return result

    prepared, quantizer = prepared_for("w8a8", Plain())
    losses = train(prepared, quantizer, steps=40, rate=0.2)
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
