"""A converter that computes another shape than PyTorch is found out, at the operation that it converts."""

from collections.abc import Callable

import pytest
import torch
from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
from coremltools.converters.mil.mil import Builder as mb
from helpers.lowering import Function
from helpers.lowering import lower as lower_to_edge
from torch import Tensor

from partitioner import CoreMLPartitioner, host, lower
from partitioner.errors import ConversionError

X = torch.linspace(-1, 1, 12).reshape(3, 4)


def tangent(x: Tensor) -> Tensor:
    return (torch.tan(x) + 1).sum(-1)


@pytest.fixture
def wrong_tangent(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(context, node) -> None:
        x = mb.tan(x=context[node.inputs[0]])
        context.add(mb.slice_by_size(x=x, begin=[0, 1], size=[-1, -1]), node.name)

    monkeypatch.setitem(_TORCH_OPS_REGISTRY.name_to_func_mapping, "tan", convert)


@pytest.mark.usefixtures("wrong_tangent")
@pytest.mark.parametrize(
    "way", [lambda: lower(torch.export.export(Function(tangent), (X,))), lambda: lower_to_edge(Function(tangent), (X,))]
)
def test_a_wrong_shape_is_refused_and_the_operation_named(way: Callable[[], object]) -> None:
    with pytest.raises(
        ConversionError, match=r"aten\.tan\.default.*shape \(3, 3\) where PyTorch has \(3, 4\)"
    ) as error:
        way()
    assert "skip_ops_for_coreml_delegation=['aten.tan.default']" in str(error.value)


@pytest.mark.usefixtures("wrong_tangent")
def test_with_fallback_the_operation_runs_outside() -> None:
    partitioner = CoreMLPartitioner(on_error="fallback")
    manager = lower_to_edge(Function(tangent), (X,), partitioner=partitioner)
    assert [rejection.op for rejection in partitioner.rejections] == ["aten.tan.default"]
    (result,) = host.run(manager.to_executorch().buffer, X)
    torch.testing.assert_close(result, tangent(X), rtol=5e-3, atol=5e-3)
