"""Trial conversions, so that an operation that fails can stay outside Core ML instead of ending the lowering.

ExecuTorch converts after it has partitioned, when it is too late to change a partition. With ``on_error="fallback"``,
the partitioner therefore converts each partition once before it proposes the partition.
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
    """Converts partitions and returns the operations that make them fail.

    Args:
        program: The program that contains the partitions.
        options: How to convert.
        tensors: Constants by name. The program's own constants may have no values while ExecuTorch partitions.
        groups: The operations of each partition.

    Returns:
        For each partition that fails, the operation that makes it fail and the reason to keep it outside Core ML.

    Raises:
        ConversionError: A conversion fails, and no single operation is the cause.
        DeploymentTargetError: The deployment target is too low, and no single operation is the cause.
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
    """Returns a tensor with values in place of a fake one.

    This is the constant that the fake tensor holds, else `known` if its shape and dtype match, else ones. A tensor that
    is not fake is returned as it is.
    """
    if not isinstance(table, FakeTensor):
        return table
    if table.constant is not None:
        return table.constant
    if known is not None and known.shape == table.shape and known.dtype == table.dtype:
        return known
    return torch.ones(tuple(table.shape), dtype=table.dtype)
