"""The arguments of `lower`: options of the partitioner, and where everything else belongs."""

import re
from typing import Any

import pytest
import torch
from executorch.exir._serialize._program import deserialize_pte_binary
from helpers.lowering import Function

from partitioner import CoreMLPartitioner, LoweredProgram, lower
from partitioner.errors import ArgumentError, CompileSpecError, UnsupportedOpError

X = torch.linspace(-1, 1, 12).reshape(3, 4)
PROGRAM = torch.export.export(Function(lambda x: torch.relu(x) * 2), (X,))
OUTSIDE = torch.export.export(Function(lambda x: torch.acosh(x + 3) * 2), (X,))
OPTIONS: list[dict[str, Any]] = [
    {"skip_ops_for_coreml_delegation": ["aten.mul.tensor"]},
    {"on_error": "fallback"},
    {"lower_full_graph": True},
]


def instructions(lowered: LoweredProgram) -> tuple[int, int]:
    (plan,) = deserialize_pte_binary(lowered.buffer).program.execution_plan
    return len(plan.delegates), len(plan.operators)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_of_the_partitioner_are_taken(options: dict[str, Any]) -> None:
    ours, theirs = lower(PROGRAM, **options), lower(PROGRAM, partitioner=CoreMLPartitioner(**options))
    assert instructions(ours) == instructions(theirs)
    assert ours.buffer == theirs.buffer


def test_they_are_honoured() -> None:
    assert instructions(lower(PROGRAM)) == (1, 0)
    assert instructions(lower(PROGRAM, skip_ops_for_coreml_delegation=["aten.mul.tensor"]))[1] > 0
    with pytest.raises(UnsupportedOpError, match="lower_full_graph=True, but Core ML does not take"):
        lower(OUTSIDE, lower_full_graph=True)
    assert lower(OUTSIDE, lower_full_graph=False).rejections


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_they_are_not_taken_beside_a_partitioner(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=rf"give all options to the partitioner: CoreMLPartitioner\({name}=\.\.\.\)"):
        lower(PROGRAM, partitioner=CoreMLPartitioner(), **options)


def test_impossible_values_are_named() -> None:
    with pytest.raises(CompileSpecError, match="on_error='skip' must be one of 'raise', 'fallback'"):
        lower(PROGRAM, on_error="skip")  # type: ignore[arg-type]
    with pytest.raises(CompileSpecError, match='on_error must be "raise" when lower_full_graph=True'):
        lower(PROGRAM, on_error="fallback", lower_full_graph=True)


MISPLACED = {
    "take_over_mutable_buffer": "write lower(program, partitioner=CoreMLPartitioner(take_over_mutable_buffer=...))",
    "delegate_islands": "write lower(program, partitioner=CoreMLPartitioner(delegate_islands=...))",
    "minimum_deployment_target": "compile_specs=CoreMLBackend.generate_compile_specs(minimum_deployment_target=...))",
    "compute_precision": "compile_specs=CoreMLBackend.generate_compile_specs(compute_precision=...))",
    "generate_etrecord": "write to_edge_transform_and_lower(program, partitioner=[CoreMLPartitioner()], generate_etr",
    "compile_config": "partitioner=[CoreMLPartitioner()], compile_config=...).to_executorch()",
    "onerror": "did you mean 'on_error'?",
    "minimum_deployment_targets": "did you mean 'minimum_deployment_target'?",
    "xyz": "it takes compile_specs, config, lower_full_graph, on_error, partitioner, programs, skip_ops",
}


@pytest.mark.parametrize(("name", "message"), MISPLACED.items())
def test_other_arguments_are_told_where_they_belong(name: str, message: str) -> None:
    with pytest.raises(TypeError, match=rf"(?s)lower\(\) takes no argument '{name}'.*{re.escape(message)}"):
        lower(PROGRAM, **{name: None})


def test_all_misplaced_arguments_are_named_at_once() -> None:
    with pytest.raises(ArgumentError, match=r"(?s)'compute_unit'.*\n.*'constant_methods'"):
        lower(PROGRAM, compute_unit=None, constant_methods=None)  # type: ignore[arg-type]
