"""Mutable buffers: what becomes a Core ML state, what stays with ExecuTorch, and that both count right."""

import copy
from collections.abc import Callable

import coremltools as ct
import pytest
import torch
from executorch.exir import to_edge, to_edge_transform_and_lower
from executorch.runtime import Runtime
from helpers.lowering import CallCounter
from torch import Tensor, nn

from partitioner import CoreMLBackend, CoreMLPartitioner, host, lower
from partitioner.errors import ConversionError, DeploymentTargetError

X = torch.linspace(-1, 1, 4).reshape(1, 4)
SLOW = pytest.mark.slow
FLOAT32 = CoreMLBackend.generate_compile_specs(compute_precision=ct.precision.FLOAT32)


class Buffers(nn.Module):
    """Buffers of given values, and a function of the module and its input."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], **buffers: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value.clone(), persistent=name != "fleeting")

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _count(module: nn.Module, x: Tensor) -> Tensor:
    module.n.add_(1)
    return x + module.n % 7


def _toggle(module: nn.Module, x: Tensor) -> Tensor:
    module.n.logical_not_()
    return torch.where(module.n, x, -x)


def _sum(module: nn.Module, x: Tensor) -> Tensor:
    module.n.add_(x)
    return module.n * 2


def _return(module: nn.Module, x: Tensor) -> Tensor:
    module.n.add_(x)
    return module.n


def _double(module: nn.Module, x: Tensor) -> Tensor:
    module.fleeting.mul_(2)
    return x + module.fleeting


def _spread(module: nn.Module, x: Tensor) -> Tensor:
    module.n.add_(x)
    return torch.acosh(module.n + 9) * module.n


OUTSIDE = {
    "integers": (_count, {"n": torch.tensor([2047])}, "it holds torch.int64"),
    "booleans": (_toggle, {"n": torch.zeros(1, 4, dtype=torch.bool)}, "it holds torch.bool"),
    "not zeros": (_sum, {"n": torch.full((1, 4), 5.0)}, "it does not start at zeros"),
    "not zeros, not persistent": (_double, {"fleeting": torch.full((1, 4), 3.0)}, "it does not start at zeros"),
    "returned": (_return, {"n": torch.zeros(1, 4)}, "the program returns its new value"),
    "in several partitions": (_spread, {"n": torch.zeros(1, 4)}, "more than one partition"),
}


def runs(buffer: bytes, times: int) -> list[Tensor]:
    host.enable()
    method = Runtime.get().load_program(buffer).load_method("forward")
    return [method.execute([X])[0].clone() for _ in range(times)]


@pytest.mark.parametrize(
    "way", ["lower", pytest.param("edge", marks=SLOW), pytest.param("inputs and outputs", marks=SLOW)]
)
@pytest.mark.parametrize(("function", "buffers", "reason"), OUTSIDE.values(), ids=OUTSIDE.keys())
def test_what_no_state_can_hold_stays_outside(function, buffers: dict, reason: str, way: str) -> None:
    model = Buffers(function, **buffers)
    program = torch.export.export(copy.deepcopy(model), (X,))
    partitioner = CoreMLPartitioner(compile_specs=FLOAT32, take_over_mutable_buffer=way != "inputs and outputs")
    if way == "edge":
        buffer = to_edge_transform_and_lower(program, partitioner=[partitioner]).to_executorch().buffer
    else:
        buffer = lower(program, partitioner=partitioner).buffer
    for result in runs(buffer, 3):
        torch.testing.assert_close(result, model(X), rtol=1e-5, atol=1e-5)
    (report,) = partitioner.report()
    if partitioner.take_over_mutable_buffer:
        assert [reason in note for note in report.notes] == [True]
        assert f"the mutable buffer {next(iter(buffers))!r} stays outside Core ML" in report.notes[0]
    assert report.target is None


def test_zeros_become_a_state_without_a_note() -> None:
    lowered = lower(torch.export.export(CallCounter(), (X,)))
    assert lowered.report[0].notes == ()
    assert lowered.report[0].target == "iOS18"
    assert [float(result.max()) for result in runs(lowered.buffer, 3)] == [2.0, 3.0, 4.0]


def test_what_was_known_of_one_program_is_not_believed_of_the_next() -> None:
    partitioner = CoreMLPartitioner()
    for value, notes in ((1.0, 1), (0.0, 0)):
        program = torch.export.export(Buffers(_sum, n=torch.full((1, 4), value)), (X,))
        lower(program, partitioner=partitioner)
        assert len(partitioner.report()[0].notes) == notes


def test_the_older_way_hides_values_until_it_is_too_late() -> None:
    program = to_edge(torch.export.export(Buffers(_sum, n=torch.ones(1, 4)), (X,)))
    with pytest.raises(ConversionError, match=r"'n': it does not start at zeros") as error:
        program.to_backend(CoreMLPartitioner())
    assert "Use to_edge_transform_and_lower" in str(error.value)


def test_a_target_without_states_is_refused_with_the_way_out() -> None:
    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS17)
    with pytest.raises(DeploymentTargetError, match="take_over_mutable_buffer=False"):
        lower(torch.export.export(CallCounter(), (X,)), compile_specs=specs)


class Cache(nn.Module):
    """Attention over keys and values that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(1, 8, 4))

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        query, key, value = (layer(x) for layer in self.project)
        self.keys.index_copy_(1, place, key)
        self.values.index_copy_(1, place, value)
        return (query @ self.keys.mT).softmax(-1) @ self.values


@pytest.mark.parametrize("zeroed", [True, pytest.param(False, marks=SLOW)])
def test_a_model_that_ran_with_gradients_before_it_was_exported(zeroed: bool) -> None:
    model, inputs = Cache(), (X.reshape(1, 1, 4), torch.tensor([0]))
    model(*inputs)
    if zeroed:
        with torch.no_grad():
            model.keys.zero_()
            model.values.zero_()
    partitioner = CoreMLPartitioner(compile_specs=FLOAT32)
    program = torch.export.export(model, inputs)
    buffer = to_edge_transform_and_lower(program, partitioner=[partitioner]).to_executorch().buffer
    assert len(partitioner.report()[0].notes) == (0 if zeroed else 2)
    host.enable()
    method = Runtime.get().load_program(buffer).load_method("forward")
    with torch.no_grad():
        for place in (1, 2):
            inputs = torch.full((1, 1, 4), float(place)), torch.tensor([place])
            torch.testing.assert_close(method.execute(inputs)[0], model(*inputs), rtol=1e-2, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("take_over", [True, False])
def test_a_language_model_with_a_static_cache(take_over: bool) -> None:
    """Its cache counts positions in an integer buffer."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=32, **sizes)).eval()
    cache = {"batch_size": 1, "max_cache_len": 16}
    model.generation_config = GenerationConfig(
        use_cache=True, cache_implementation="static", max_length=16, cache_config=cache
    )
    exportable = TorchExportableModuleForDecoderOnlyLM(model)
    program = exportable.export(input_ids=torch.tensor([[3]]), cache_position=torch.tensor([0]))
    lowered = lower(program, partitioner=CoreMLPartitioner(take_over_mutable_buffer=take_over))
    assert len(lowered.report[0].notes) == int(take_over)
    host.enable()
    method = Runtime.get().load_program(lowered.buffer).load_method("forward")
    module = program.module()
    for place, token in enumerate((3, 7, 9)):
        ids, position = torch.tensor([[token]]), torch.tensor([place])
        expected = module(input_ids=ids, cache_position=position)
        torch.testing.assert_close(method.execute([ids, position])[0], expected, rtol=1e-2, atol=1e-2)
