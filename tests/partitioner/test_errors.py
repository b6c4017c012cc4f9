"""What cannot be lowered is refused early, with the thing, the place and the remedy named."""

import coremltools as ct
import pytest
import torch
from executorch.exir import to_edge, to_edge_transform_and_lower
from helpers.lowering import lower
from helpers.minimal_quantizer import dynamically_quantized, quantized
from torch import nn

from partitioner import CoreMLBackend, CoreMLPartitioner, errors
from partitioner.conversion import convert as convert_module
from partitioner.lowerings import registry

X = (torch.linspace(-1, 1, 12).reshape(2, 6),)


class Acosh(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.acosh(x + 2) * 2


@pytest.fixture
def no_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the error must come before the conversion")

    monkeypatch.setattr(convert_module.ct, "convert", refuse)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU()).eval()


@pytest.mark.usefixtures("no_conversion")
@pytest.mark.parametrize("low", [ct.target.iOS15, ct.target.iOS16])
def test_quantized_activations_need_ios17(low: ct.target) -> None:
    program = torch.export.export(quantized(linear(), X), X)
    partitioner = CoreMLPartitioner(compile_specs=CoreMLBackend.generate_compile_specs(minimum_deployment_target=low))
    with pytest.raises(errors.DeploymentTargetError) as error:
        to_edge_transform_and_lower(program, partitioner=[partitioner])
    message = str(error.value)
    assert f"{low.name} is too low" in message
    assert "quantized activations need iOS17: quantized_decomposed.quantize_per_tensor.default" in message
    assert "CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS17)" in message


@pytest.mark.usefixtures("no_conversion")
def test_the_dequantization_of_activations_is_not_called_weights() -> None:
    program = torch.export.export(quantized(linear(), X), X)
    partitioner = CoreMLPartitioner(
        compile_specs=CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS15)
    )
    with pytest.raises(errors.DeploymentTargetError) as error:
        to_edge_transform_and_lower(program, partitioner=[partitioner])
    message = str(error.value)
    assert "quantized activations need iOS17: quantized_decomposed.dequantize_per_tensor.default" in message
    assert "quantized weights need iOS16: quantized_decomposed.dequantize_per_channel.default (1x)" in message
    assert "quantized weights need iOS16: quantized_decomposed.dequantize_per_tensor.default" not in message


@pytest.mark.usefixtures("no_conversion")
def test_small_weights_are_named_in_a_sentence() -> None:
    program = torch.export.export(quantized(linear(), X, activation=None, weight_range=(-7, 7)), X)
    partitioner = CoreMLPartitioner(
        compile_specs=CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS17)
    )
    with pytest.raises(errors.DeploymentTargetError, match="weights of 4 bits or fewer need iOS18: "):
        to_edge_transform_and_lower(program, partitioner=[partitioner])


class CountingNorm(nn.BatchNorm1d):
    """What is left of a batch norm in training once it is folded into its convolution."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_batches_tracked.add_(1)
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


def test_counted_batches_are_recognised_as_training() -> None:
    partitioner = CoreMLPartitioner()
    lower(nn.Sequential(CountingNorm(6), CountingNorm(6)), X, partitioner=partitioner)
    notes = partitioner.report()[0].notes
    assert [f"'{index}.num_batches_tracked' stays outside Core ML" in notes[index] for index in (0, 1)] == [True, True]
    assert all("call model.eval() before torch.export.export" in note for note in notes)


@pytest.mark.usefixtures("no_conversion")
def test_low_targets_are_refused_on_the_older_path_too() -> None:
    program = to_edge(torch.export.export(quantized(linear(), X), X))
    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS16)
    with pytest.raises(errors.DeploymentTargetError, match="iOS17"):
        program.to_backend(CoreMLPartitioner(compile_specs=specs))


@pytest.mark.usefixtures("no_conversion")
def test_dynamic_quantization_is_refused() -> None:
    program = torch.export.export(dynamically_quantized(linear(), X), X)
    with pytest.raises(errors.UnsupportedOpError) as error:
        to_edge_transform_and_lower(program, partitioner=[CoreMLPartitioner()])
    assert "no dynamic quantization" in str(error.value)
    assert "choose_qparams" in str(error.value)
    assert "Use static quantization" in str(error.value)


@pytest.mark.usefixtures("no_conversion")
def test_a_graph_that_must_be_whole_is_refused_with_every_reason() -> None:
    with pytest.raises(errors.UnsupportedOpError) as error:
        lower(Acosh(), X, partitioner=CoreMLPartitioner(lower_full_graph=True))
    assert "aten.acosh.default" in str(error.value)
    assert "torch.acosh(x + 2) * 2" in str(error.value)
    assert "lower_full_graph=False" in str(error.value)
    assert isinstance(error.value, NotImplementedError)


class Wide(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.long() + 2**40


@pytest.mark.usefixtures("no_conversion")
def test_integers_outside_int32_are_refused_where_the_graph_must_be_whole() -> None:
    with pytest.raises(errors.UnsupportedOpError) as error:
        lower(Wide(), X, partitioner=CoreMLPartitioner(lower_full_graph=True))
    assert "aten.add.Tensor" in str(error.value)
    assert f"holds {2**40}, and Core ML has no integers outside int32" in str(error.value)


def test_arguments_that_contradict_each_other_are_all_named() -> None:
    with pytest.raises(errors.CompileSpecError) as error:
        CoreMLPartitioner(
            lower_full_graph=True,
            skip_ops_for_coreml_delegation=["aten.relu.default"],
            take_over_mutable_buffer=False,
            take_over_constant_data=False,
        )
    for name in ("skip_ops_for_coreml_delegation", "take_over_mutable_buffer", "take_over_constant_data"):
        assert name in str(error.value)


WRONG_ARGUMENTS = [
    ({"skip_ops_for_coreml_delegation": "aten.relu.default"}, ["'aten.relu.default' must be a list"]),
    (
        {"skip_ops_for_coreml_delegation": [torch.ops.aten.relu.default, 3, "aten.relu.defualt"]},
        ["overload='default')>, which is not a string", "3, which is not a string", "near matches: aten.relu.default"],
    ),
    (
        {"skip_ops_for_coreml_delegation": ["aten.relu", "?"]},
        ["near matches: aten.relu.", "'?', which is no registered"],
    ),
    ({"lower_full_graph": "yes"}, ["lower_full_graph='yes' must be True or False"]),
    ({"compile_specs": "a"}, ["compile_specs='a' must be a list of CompileSpec"]),
    ({"compile_specs": ["a"], "lower_full_graph": 1}, ["compile_specs=['a'] must be", "lower_full_graph=1 must be"]),
]


@pytest.mark.parametrize(("arguments", "parts"), WRONG_ARGUMENTS)
def test_arguments_of_the_wrong_kind_are_refused_at_once(arguments: dict, parts: list[str]) -> None:
    with pytest.raises(errors.CompileSpecError) as error:
        CoreMLPartitioner(**arguments)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "aten.cos.default",
        "ATen.Add.Tensor",
        "dim_order_ops._to_dim_order_copy.default",
        "quantized_decomposed.quantize_per_tensor.default",
        "getitem",
        "cond",
    ],
)
def test_names_of_operators_that_do_not_occur_are_taken(name: str) -> None:
    assert CoreMLPartitioner(skip_ops_for_coreml_delegation=[name]).skip_ops_for_coreml_delegation == [name]


def test_enumerated_shapes_need_the_full_graph() -> None:
    shapes = {"input": {0: torch.export.Dim("n", min=2, max=16)}}
    program = torch.export.export(linear(), (torch.zeros(4, 6),), dynamic_shapes=shapes)
    specs = [CoreMLBackend.generate_enumerated_shapes_compile_spec(program, {"input": [[2, 6], [8, 6]]})]
    with pytest.raises(errors.CompileSpecError, match="lower_full_graph"):
        CoreMLPartitioner(compile_specs=specs)


@pytest.mark.skipif("sys.platform == 'darwin'", reason="macOS compiles models")
def test_compiled_models_need_macos() -> None:
    specs = CoreMLBackend.generate_compile_specs(model_type=CoreMLBackend.MODEL_TYPE.COMPILED_MODEL)
    with pytest.raises(errors.CompileSpecError, match="needs macOS"):
        CoreMLPartitioner(compile_specs=specs)


def test_a_failed_conversion_names_the_operation_its_line_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_context: object, _node: object) -> None:
        raise KeyError("dtype")

    monkeypatch.setitem(registry._TORCH_OPS_REGISTRY.name_to_func_mapping, "relu", fail)
    with pytest.raises(errors.ConversionError) as error:
        lower(Relu(), X)
    message = str(error.value)
    assert "aten.relu.default (node 'aten_relu_default'" in message
    assert "return torch.relu(x) + 1" in message
    assert "KeyError: 'dtype'" in message
    assert "skip_ops_for_coreml_delegation=['aten.relu.default']" in message


@pytest.mark.parametrize("enumerated", [False, True])
def test_a_failed_conversion_of_the_full_graph_has_its_own_remedy(
    monkeypatch: pytest.MonkeyPatch, enumerated: bool
) -> None:
    def fail(_context: object, _node: object) -> None:
        raise KeyError("dtype")

    shapes = {"x": {0: torch.export.Dim("n", min=2, max=16)}}
    program = torch.export.export(Relu(), (torch.zeros(4, 6),), dynamic_shapes=shapes)
    specs = [CoreMLBackend.generate_enumerated_shapes_compile_spec(program, {"x": [[2, 6], [8, 6]]})]
    partitioner = CoreMLPartitioner(compile_specs=specs if enumerated else [], lower_full_graph=True)
    monkeypatch.setitem(registry._TORCH_OPS_REGISTRY.name_to_func_mapping, "relu", fail)
    with pytest.raises(errors.ConversionError) as error:
        to_edge_transform_and_lower(program, partitioner=[partitioner])
    message = str(error.value)
    if enumerated:
        assert "rewrite the model without the operation" in message
        assert "skip_ops_for_coreml_delegation" not in message
    else:
        assert (
            "CoreMLPartitioner(lower_full_graph=False, skip_ops_for_coreml_delegation=['aten.relu.default'])" in message
        )


class Relu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) + 1


class Unshuffle(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pixel_unshuffle(x, 2)


def test_an_operation_newer_than_the_target_is_refused_by_name() -> None:
    image = (torch.zeros(1, 1, 4, 4),)
    with pytest.raises(errors.DeploymentTargetError) as error:
        lower(Unshuffle(), image, minimum_deployment_target=ct.target.iOS15)
    assert "aten.pixel_unshuffle.default" in str(error.value)
    assert "operations new in iOS16 need iOS16: " in str(error.value)
    lower(Unshuffle(), image)


def test_failures_leave_no_files(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_module.tempfile, "tempdir", str(tmp_path))
    lower(linear(), X)
    with pytest.raises(errors.DeploymentTargetError):
        lower(Unshuffle(), (torch.zeros(1, 1, 4, 4),), minimum_deployment_target=ct.target.iOS15)
    assert list(tmp_path.iterdir()) == []


def test_lowering_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    lower(linear(), X)
    output = capfd.readouterr()
    assert output.out == ""
    assert "MIL" not in output.err
    assert "Core ML" not in output.err
