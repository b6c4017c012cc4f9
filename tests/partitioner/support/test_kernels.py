"""What stays outside Core ML has a kernel there, or is refused: no program is written that cannot run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from helpers.lowering import Function
from torch import Tensor
from torch.nn import functional as F

from partitioner import CoreMLPartitioner, host, lower
from partitioner.errors import UnsupportedOpError
from partitioner.support.kernels import _kernels, has_kernel, is_decomposed

ATEN = torch.ops.aten
VOLUME = torch.linspace(-1, 1, 250).reshape(1, 2, 5, 5, 5)
X = torch.linspace(-1, 1, 24).reshape(4, 6)
INDEX = (torch.arange(24) % 3).reshape(4, 6)

Way = Callable[..., bytes]


def by_lower(program: torch.export.ExportedProgram, **options: Any) -> bytes:
    return lower(program, **options).buffer


def by_edge(program: torch.export.ExportedProgram, **options: Any) -> bytes:
    return to_edge_transform_and_lower(program, partitioner=[CoreMLPartitioner(**options)]).to_executorch().buffer


both_ways = pytest.mark.parametrize("way", [by_lower, by_edge])

NO_KERNEL: dict[str, tuple[str, Callable[..., Tensor], tuple[Tensor, ...], dict[str, Any]]] = {
    "an average of volumes that is divided by another number": (
        "aten.avg_pool3d.default",
        lambda x: F.avg_pool3d(x, 2, divisor_override=3) + 1,
        (VOLUME,),
        {},
    ),
    "a dilated maximum of volumes": (
        "aten.max_pool3d_with_indices.default",
        lambda x: F.max_pool3d(x, 2, dilation=2) + 1,
        (VOLUME,),
        {"on_error": "fallback"},
    ),
}


@both_ways
@pytest.mark.parametrize("case", NO_KERNEL.values(), ids=NO_KERNEL.keys())
def test_what_neither_side_runs_is_refused(case: Any, way: Way) -> None:
    name, function, inputs, options = case
    program = torch.export.export(Function(function), inputs)
    with pytest.raises(UnsupportedOpError, match=rf"neither Core ML nor ExecuTorch has:\n  {name} \(File ") as error:
        way(program, **options)
    assert f"skip_ops_for_coreml_delegation=['{name}']" in str(error.value)


def test_other_partitioners_may_take_what_a_user_skips() -> None:
    program = torch.export.export(Function(lambda x: F.avg_pool3d(x, 2) + 1), (VOLUME,))
    skipped = ["aten.avg_pool3d.default"]
    by_edge(program, skip_ops_for_coreml_delegation=skipped)
    with pytest.raises(UnsupportedOpError, match="neither Core ML nor ExecuTorch has"):
        by_lower(program, skip_ops_for_coreml_delegation=skipped)  # nothing else takes it


SMALL_WEIGHT = (torch.arange(18).reshape(6, 3) % 7 - 3).to(torch.int8)
NARROW: dict[str, Callable[[Tensor], Tensor]] = {
    "a product": lambda x: x @ SMALL_WEIGHT.to(x.dtype),
    "a product of batches": lambda x: x[None] @ SMALL_WEIGHT.to(x.dtype),
    "a linear layer": lambda x: F.linear(x, SMALL_WEIGHT.to(x.dtype).t()),
    "a sum": lambda x: x.sum(),
    "a sum of rows": lambda x: x.sum(1),
    "a product of all": lambda x: x.prod(),
    "any": lambda x: x.any(),
}


@both_ways
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize("function", NARROW.values(), ids=NARROW.keys())
def test_narrow_integers_outside_core_ml(function: Callable[[Tensor], Tensor], dtype: torch.dtype, way: Way) -> None:
    x = (torch.arange(24).reshape(4, 6) % 5).to(dtype)
    (result,) = host.run(way(torch.export.export(Function(function), (x,))), x)
    assert torch.equal(result, function(x))


@pytest.mark.parametrize(
    ("target", "runs", "decomposed"),
    [
        (ATEN.asinh.default, True, False),
        (ATEN.mm.default, True, False),
        (ATEN.linear.default, True, True),
        (ATEN.matmul.default, False, True),
        (ATEN.sum.default, False, True),
        (ATEN.avg_pool3d.default, False, False),
        (ATEN.scatter_reduce.two, False, False),
        (ATEN.sort.default, False, False),
        (ATEN.topk.default, True, False),
        (ATEN.sym_size.int, True, False),
        (torch.ops.quantized_decomposed.quantize_per_tensor.default, True, False),
        (torch.ops.quantized_decomposed.dequantize_per_channel.default, True, False),
    ],
)
def test_kernels(target: Any, runs: bool, decomposed: bool) -> None:
    assert (has_kernel(target), is_decomposed(target)) == (runs, decomposed)


def test_the_list_is_that_of_the_runtime() -> None:
    from executorch.runtime import Runtime

    registered = Runtime.get().operator_registry.operator_names
    missing = {name for name in _kernels() if not name.startswith("quantized_decomposed::")} - set(registered)
    assert missing == {"aten::allclose.Tensor", "aten::allclose.out"}  # of the training library
    overloads = {name for name in _kernels() if name.startswith("aten::")}
    found = {
        f"aten::{name}.{overload}"
        for name in {name[6:].partition(".")[0] for name in overloads}
        for overload in getattr(ATEN, name).overloads()
        if has_kernel(getattr(getattr(ATEN, name), overload))
    }
    assert {"aten::pow.Tensor_Scalar", "aten::add.Tensor", "aten::max.dim", "aten::empty.memory_format"} <= found
    assert len(found) > 200
