"""Operations on the skip list run outside Core ML, whole or in parts, and remedies that are offered work."""

from collections.abc import Callable

import coremltools as ct
import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from helpers.lowering import Function, calls
from torch import Tensor, nn

from partitioner import CoreMLBackend, CoreMLPartitioner, errors, host, lower
from partitioner.lowerings import registry

SLOW = pytest.mark.slow
X = torch.linspace(-1, 1, 64).reshape(1, 2, 4, 8)
GRID = torch.linspace(-1, 1, 32).reshape(1, 4, 4, 2)
FLOAT32 = CoreMLBackend.generate_compile_specs(compute_precision=ct.precision.FLOAT32)


def attention(x: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(x, x, x) * 2


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


COMPOSITES = {
    "scaled_dot_product_attention.default": Function(attention),
    "grid_sampler.default": Function(lambda x: nn.functional.grid_sample(x, GRID, align_corners=False) * 2),
    "layer_norm.default": nn.LayerNorm(8),
    "conv2d.default": seeded(lambda: nn.Conv2d(2, 3, 2)),
    "linear.default": seeded(lambda: nn.Linear(8, 4)),
    "hardswish.default": nn.Hardswish(),
    "instance_norm.default": nn.InstanceNorm2d(2),
    "matmul.default": Function(lambda x: x @ x.mT),
    "einsum.default": Function(lambda x: torch.einsum("abcd,abed->abce", x, x)),
}
PROMPT = ("scaled_dot_product_attention.default", "conv2d.default")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in PROMPT else SLOW) for name in COMPOSITES])
def test_composite_operations_are_skipped_in_parts(name: str) -> None:
    model = COMPOSITES[name]
    partitioner = CoreMLPartitioner(compile_specs=FLOAT32, skip_ops_for_coreml_delegation=[f"aten.{name}"])
    manager = to_edge_transform_and_lower(torch.export.export(model, (X,)), partitioner=[partitioner])
    assert f"aten.{name}" not in calls(manager)
    assert {rejection.reason for rejection in partitioner.rejections} == {"listed in skip_ops_for_coreml_delegation"}
    (result,) = host.run(manager.to_executorch().buffer, X)
    torch.testing.assert_close(result, model(X).detach(), rtol=1e-5, atol=1e-5)


def test_names_without_effect_are_told() -> None:
    partitioner = CoreMLPartitioner(skip_ops_for_coreml_delegation=["aten.relu.default", "aten.convolution.default"])
    model = nn.Sequential(COMPOSITES["conv2d.default"], nn.ReLU())
    to_edge_transform_and_lower(torch.export.export(model, (X,)), partitioner=[partitioner])
    assert partitioner.report()[0].notes == (
        "skip_ops_for_coreml_delegation names 'aten.convolution.default', which the program does not have",
    )


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    def fail(_context: object, _node: object) -> None:
        raise KeyError("dtype")

    return lambda name: monkeypatch.setitem(registry._TORCH_OPS_REGISTRY.name_to_func_mapping, name, fail)


def test_the_offered_remedy_works_for_a_composite_operation(failing) -> None:
    failing("scaled_dot_product_attention")
    program = torch.export.export(Function(attention), (X,))
    with pytest.raises(errors.ConversionError) as error:
        lower(program)
    name = "aten.scaled_dot_product_attention.default"
    assert f"skip_ops_for_coreml_delegation=['{name}']" in str(error.value)
    lowered = lower(
        program, partitioner=CoreMLPartitioner(compile_specs=FLOAT32, skip_ops_for_coreml_delegation=[name])
    )
    (result,) = host.run(lowered.buffer, X)
    torch.testing.assert_close(result, attention(X), rtol=1e-5, atol=1e-5)


def test_no_remedy_is_offered_that_executorch_cannot_follow(failing) -> None:
    failing("sort")
    with pytest.raises(errors.ConversionError) as error:
        lower(torch.export.export(Function(lambda x: torch.sort(x)[0]), (X,)))
    assert "ExecuTorch has no kernel for the operation and no decomposition of it" in str(error.value)
    assert "skip_ops_for_coreml_delegation" not in str(error.value)


def test_fallback_is_not_offered_to_those_who_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("partitioner.conversion.convert.convert_to_spec", fail)
    partitioner = CoreMLPartitioner(on_error="fallback")
    with pytest.raises(errors.ConversionError, match="no memory") as error:
        to_edge_transform_and_lower(torch.export.export(Function(torch.relu), (X,)), partitioner=[partitioner])
    assert "skip_ops_for_coreml_delegation" in str(error.value)
    assert "on_error" not in str(error.value)
