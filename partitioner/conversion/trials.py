"""Conversions on trial, so that what fails can stay outside Core ML instead of ending the lowering.

ExecuTorch converts after it has partitioned, when it is too late to change a partition. With ``on_error="fallback"``
the partitioner therefore converts each partition once before it proposes it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.export import ExportedProgram
from torch.fx import Node

from partitioner.conversion.convert import convert
from partitioner.errors import ConversionError, DeploymentTargetError
from partitioner.graph.subprograms import subprogram
from partitioner.options.compile_specs import LoweringOptions
from partitioner.refusals import Kind, Refusal


def failures(
    program: ExportedProgram,
    options: LoweringOptions,
    tensors: Mapping[str, torch.Tensor],
    groups: Iterable[Sequence[Node]],
) -> dict[Node, Refusal]:
    """Converts partitions and returns what makes them fail.

    Args:
        program: The program that the partitions are of.
        options: How to convert.
        tensors: Constants by name; the program's own may be without values while ExecuTorch partitions.
        groups: The operations of each partition.

    Returns:
        For each partition that fails, the operation that makes it fail and the reason to keep it outside Core ML.

    Raises:
        ConversionError: A conversion fails, and no single operation is the cause.
        DeploymentTargetError: The same, for a deployment target that is too low.
    """
    found = {}
    names = {node.name: node for node in program.graph.nodes}
    with unset_fake_temporarily():
        values = _values(program, tensors)
        for group in groups:
            part = subprogram(program, group, values)
            if part is None:
                continue
            try:
                convert(part, replace(options, op_linear_quantizer_config=None, on_trial=True))
            except (ConversionError, DeploymentTargetError) as error:
                if error.node is None:
                    raise
                found[names[error.node]] = Refusal(Kind.CONVERSION, f"its conversion fails: {_cause(error)}")
    return found


def _cause(error: Exception) -> str:
    cause = error.__cause__
    lines = [] if cause is None else [line for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0].strip()}" if lines else type(cause or error).__name__


def _values(program: ExportedProgram, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tables = {**program.constants, **program.state_dict}
    return {name: _value(table, tensors.get(name)) for name, table in tables.items() if isinstance(table, torch.Tensor)}


def _value(table: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
    """Returns the tensor itself, what it stands for, or ones."""
    if not isinstance(table, FakeTensor):
        return table
    if table.constant is not None:
        return table.constant
    if known is not None and known.shape == table.shape and known.dtype == table.dtype:
        return known
    return torch.ones(tuple(table.shape), dtype=table.dtype)
