"""`LinearQuantizer`: coremltools' interface, both ways to a program, and messages."""

import copy

import coremltools as ct
import pytest
import torch
from coremltools.optimize.torch.quantization import LinearQuantizer as StockQuantizer
from coremltools.optimize.torch.quantization import LinearQuantizerConfig
from executorch.exir import to_edge_transform_and_lower
from helpers.models import signal_to_noise
from helpers.trained_networks import IMAGE, batches, everything, loss_of
from torch import Tensor, nn

from coreml_quantizer import ExportError, LinearQuantizer, QuantizerError, QuantizerWarning, presets
from partitioner import CoreMLBackend, CoreMLPartitioner, host

CONFIG = {"global_config": {"quantization_scheme": "symmetric", "milestones": [0, 2, 6, 4]}}
EXAMPLE = torch.rand(1, 3, 16, 16)


def trained(quantizer: LinearQuantizer, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.02)
    for batch in batches(8):
        loss = loss_of(model(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        quantizer.step()


def test_the_code_that_trains_with_coremltools_trains() -> None:
    """Config class, an optimizer made before, a batch of one as example, and coremltools' own conversion."""
    model = everything()
    start = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    quantizer = LinearQuantizer(model, LinearQuantizerConfig.from_dict(CONFIG))
    prepared = quantizer.prepare(example_inputs=EXAMPLE, inplace=True)
    trained(quantizer, prepared, optimizer)
    assert not torch.equal(start["head.weight"], model.get_parameter("head.weight")), "the optimizer had it before"
    finalized = quantizer.finalize(inplace=True)
    converted = ct.convert(
        torch.jit.trace(finalized, EXAMPLE),
        convert_to="mlprogram",
        inputs=[ct.TensorType(shape=EXAMPLE.shape)],
        minimum_deployment_target=ct.target.iOS17,
    )
    program = host.load(converted, policy="float32")
    (result,) = program.predict({program.inputs[0].name: EXAMPLE.numpy()}).values()
    assert signal_to_noise(finalized(EXAMPLE), torch.from_numpy(result)) >= 50.0
    operations = {op.op_type for op in converted._mil_program.functions["main"].operations}
    assert {"quantize", "dequantize", "constexpr_affine_dequantize"} <= operations


def test_the_finalized_model_lowers() -> None:
    quantizer = LinearQuantizer(everything(), CONFIG)
    trained(quantizer, quantizer.prepare((EXAMPLE,)))
    finalized = quantizer.finalize()
    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS17)
    edge = to_edge_transform_and_lower(
        torch.export.export(finalized, (EXAMPLE,)), partitioner=[CoreMLPartitioner(compile_specs=specs)]
    )
    (result,) = host.run(bytes(edge.to_executorch().buffer), EXAMPLE, policy="float32")
    assert signal_to_noise(finalized(EXAMPLE), result.float()) >= 50.0


def test_without_inplace_the_model_stays_as_it_is() -> None:
    model = everything().eval()
    before = copy.deepcopy(model.state_dict())
    quantizer = LinearQuantizer(model, CONFIG)
    prepared = quantizer.prepare(EXAMPLE)
    trained(quantizer, prepared)
    first = quantizer.finalize()
    second = quantizer.finalize()
    (batch,) = batches(1)
    assert torch.equal(first(batch), second(batch)), "the prepared model was not used up"
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_train_and_eval_switch() -> None:
    prepared = LinearQuantizer(everything()).prepare(EXAMPLE)
    (batch,) = batches(1)
    assert not torch.equal(prepared(batch), prepared(batch))
    twin = copy.deepcopy(prepared)
    for model in (prepared, twin):
        model.eval()
        assert torch.equal(model(batch), model(batch))
        model.train()
        assert not torch.equal(model(batch), model(batch))


def test_contexts_hold_for_their_length() -> None:
    quantizer = LinearQuantizer(everything(), {"global_config": {"milestones": [5, 6, -1, -1]}})
    prepared = quantizer.prepare(EXAMPLE)
    (batch,) = batches(1)
    reference = everything()
    reference.load_state_dict(
        {name: value for name, value in prepared.state_dict().items() if name in reference.state_dict()}
    )
    with quantizer.calibration() as model, torch.no_grad():
        observed = model(batch)
    assert torch.allclose(observed, reference.eval()(batch), atol=1e-5)
    with quantizer.training() as model:
        model(batch)
    prepared.eval()
    assert torch.allclose(
        prepared(batch),
        reference.load_state_dict(
            {name: value for name, value in prepared.state_dict().items() if name in reference.state_dict()}
        )
        and reference(batch),
        atol=1e-5,
    ), "milestones are not reached: nothing is rounded"
    finalized = quantizer.finalize()
    assert signal_to_noise(prepared(batch), finalized(batch)) > 15.0


def test_averaged_weights_can_be_finalized() -> None:
    quantizer = LinearQuantizer(everything(), CONFIG)
    prepared = quantizer.prepare(EXAMPLE)
    trained(quantizer, prepared)
    averaged = copy.deepcopy(prepared)
    with torch.no_grad():
        averaged.get_parameter("head.bias").add_(1.0)
    (batch,) = batches(1)
    shift = (quantizer.finalize(averaged)(batch) - quantizer.finalize()(batch)).mean()
    assert 0.7 < shift < 1.3


def test_report_names_every_operator() -> None:
    quantizer = LinearQuantizer(everything(), CONFIG)
    quantizer.prepare(EXAMPLE)
    text = quantizer.report().to_text()
    assert "conv" in text
    assert "linear" in text


def test_calls_before_prepare_warn_and_do_nothing() -> None:
    model = everything()
    quantizer = LinearQuantizer(model)
    with pytest.warns(QuantizerWarning, match=r"step\(\) does nothing before prepare"):
        quantizer.step()
    with pytest.warns(QuantizerWarning, match=r"finalize\(\) does nothing before prepare"):
        assert quantizer.finalize() is model
    assert not quantizer.report()
    assert repr(quantizer.report()) == repr(StockQuantizer(everything()).report()) == ""


def test_a_second_prepare_warns_and_returns_the_first_result() -> None:
    quantizer = LinearQuantizer(everything(), presets.w8())
    prepared = quantizer.prepare(EXAMPLE)
    with pytest.warns(QuantizerWarning, match=r"prepare\(\) was called before"):
        assert quantizer.prepare(EXAMPLE) is prepared


def test_calls_in_the_wrong_order_are_refused() -> None:
    quantizer = LinearQuantizer(everything(), presets.w8())
    quantizer.prepare(EXAMPLE)(*batches(1))
    quantizer.finalize(inplace=True)
    for call in ("finalize", "report", "step"):
        with pytest.raises(QuantizerError, match=rf"{call}\(\) needs the prepared model.*used up"):
            getattr(quantizer, call)()
    for context in (quantizer.calibration, quantizer.training):
        with pytest.raises(QuantizerError, match="used up"), context():
            pytest.fail("entered")


def test_a_copy_finalized_in_place_leaves_the_prepared_model() -> None:
    quantizer = LinearQuantizer(everything(), presets.w8())
    prepared = quantizer.prepare(EXAMPLE)
    prepared(*batches(1))
    averaged = copy.deepcopy(prepared)
    quantizer.finalize(averaged, inplace=True)
    quantizer.step()
    assert "conv" in quantizer.report().to_text()
    for other in (averaged, everything()):
        with pytest.raises(QuantizerError, match="has no fake quantizers"):
            quantizer.finalize(other)
    quantizer.finalize()


def test_a_model_that_does_not_export_is_named_with_its_line() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:  # the line
                return x
            return -x

    model = Branches()
    with pytest.raises(ExportError) as caught:
        LinearQuantizer(model).prepare(torch.randn(IMAGE))
    assert "Branches" in str(caught.value)
    assert "test_linear_quantizer.py" in str(caught.value)
    assert "torch.cond" in str(caught.value)
    assert model.training


def test_a_checkpoint_resumes_in_the_middle_of_the_schedule() -> None:
    def run(steps: range, quantizer: LinearQuantizer, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for batch in (batches(8)[step] for step in steps):
            torch.manual_seed(int(batch.sum() * 1000))
            loss = loss_of(model(batch), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            quantizer.step()

    def made() -> tuple[LinearQuantizer, nn.Module, torch.optim.Optimizer]:
        quantizer = LinearQuantizer(everything(), CONFIG)
        model = quantizer.prepare(EXAMPLE)
        return quantizer, model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

    quantizer, model, optimizer = made()
    run(range(3), quantizer, model, optimizer)
    saved = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    run(range(3, 8), quantizer, model, optimizer)
    resumed, other, other_optimizer = made()
    other.load_state_dict(saved[0])
    other_optimizer.load_state_dict(saved[1])
    run(range(3, 8), resumed, other, other_optimizer)
    states = model.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
