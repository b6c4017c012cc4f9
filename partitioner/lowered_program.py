"""Lowering of an exported program to a `.pte` in one call.

It skips passes that only operations outside Core ML need.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from executorch.exir import ExecutorchBackendConfig
from executorch.exir.backend.compile_spec_schema import CompileSpec
from torch.export import ExportedProgram

from partitioner.errors import ArgumentError, ConversionError, DeploymentTargetError
from partitioner.lower_in_parts import lower_in_parts
from partitioner.lower_whole import lower_whole
from partitioner.partitioner import CoreMLPartitioner
from partitioner.reporting.report import LoweringReport
from partitioner.support.decide import Rejection


@dataclass(frozen=True)
class LoweredProgram:
    """A program in ExecuTorch's format.

    Attributes:
        manager: The return value of ``to_executorch``.
        rejections: What was kept outside Core ML, and why.
        report: How each method was lowered.
        direct: Whether the program went to Core ML as a whole, without ExecuTorch's passes.
    """

    manager: Any
    rejections: tuple[Rejection, ...]
    report: tuple[LoweringReport, ...]
    direct: bool

    @property
    def buffer(self) -> bytes:
        """The content of the `.pte` file."""
        return bytes(self.manager.buffer)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the `.pte` file; a failure leaves the old file as it was.

        Raises:
            OSError: The file cannot be written.
        """
        target = Path(path)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            part.write_bytes(self.buffer)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


def lower(
    programs: ExportedProgram | Mapping[str, ExportedProgram],
    *,
    partitioner: CoreMLPartitioner | None = None,
    compile_specs: list[CompileSpec] | None = None,
    config: ExecutorchBackendConfig | None = None,
) -> LoweredProgram:
    """Lowers an exported program to Core ML and writes it in ExecuTorch's format.

    A program that Core ML takes as a whole is converted as it was exported. This needs a fraction of the time of
    ``to_edge_transform_and_lower(...).to_executorch()``. Programs with operations outside Core ML, several methods,
    mutable buffers or dynamic shapes are lowered with those slower calls.

    Args:
        programs: What `torch.export.export` returns, or a dict of them by method name.
        partitioner: The options of the lowering. Default: a `CoreMLPartitioner` with `compile_specs`.
        compile_specs: What `CoreMLBackend.generate_compile_specs` returns; not together with `partitioner`.
        config: How ExecuTorch writes the program.

    Raises:
        ArgumentError: `programs` are not exported, or `partitioner` is no `CoreMLPartitioner`.
        ValueError: Both `partitioner` and `compile_specs` are given.
        CompileSpecError: The compile specs are unreadable.
        ConversionError: Core ML Tools cannot convert an operation.
        DeploymentTargetError: The program needs a newer deployment target than the given one.
        UnsupportedOpError: The partitioner demands the whole graph, and Core ML does not take all of it; neither Core
            ML nor ExecuTorch has some operation; or the program is not ready (for example, in training mode).
    """
    _check_kinds(programs, partitioner)
    if partitioner is not None and compile_specs is not None:
        raise ValueError("give the compile specs to the partitioner: CoreMLPartitioner(compile_specs=...)")
    chosen = CoreMLPartitioner(compile_specs=compile_specs) if partitioner is None else partitioner
    if isinstance(programs, ExportedProgram):
        manager = _whole(programs, chosen)
        if manager is not None:
            return LoweredProgram(manager.to_executorch(config), (), chosen.report(), direct=True)
    methods = {"forward": programs} if isinstance(programs, ExportedProgram) else dict(programs)
    with torch.no_grad():  # buffers may be written to that parameters were computed into
        manager = lower_in_parts(methods, chosen).to_executorch(config)
    return LoweredProgram(manager, chosen.rejections, chosen.report(), direct=False)


def _check_kinds(programs: Any, partitioner: Any) -> None:
    if partitioner is not None and not isinstance(partitioner, CoreMLPartitioner):
        raise ArgumentError(
            f"partitioner must be one CoreMLPartitioner, not {type(partitioner).__name__}: "
            "lower(program, partitioner=CoreMLPartitioner(...))"
        )
    if isinstance(programs, ExportedProgram):
        return
    values = programs.values() if isinstance(programs, Mapping) else [programs]
    wrong = sorted({type(value).__name__ for value in values if not isinstance(value, ExportedProgram)})
    if wrong or not values:
        raise ArgumentError(
            f"lower takes exported programs, not {', '.join(wrong) or 'an empty dict'}: "
            "lower(torch.export.export(model.eval(), inputs)), or a dict of such by method name"
        )


def _whole(program: ExportedProgram, partitioner: CoreMLPartitioner) -> Any:
    with torch.no_grad():
        try:
            return lower_whole(program, partitioner)
        except (ConversionError, DeploymentTargetError):
            if partitioner.on_error == "raise":
                raise
    return None  # what fails is found where it can stay outside
