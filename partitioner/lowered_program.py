"""Lowering of an exported program to a `.pte` in one call.

It skips passes that only operations outside Core ML need.
"""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from executorch.exir import ExecutorchBackendConfig
from executorch.exir.backend.compile_spec_schema import CompileSpec
from torch.export import ExportedProgram

from partitioner.errors import ConversionError, DeploymentTargetError
from partitioner.foreign_errors import own_errors
from partitioner.lower_arguments import check_programs, partitioner_of, refuse_misplaced
from partitioner.lower_in_parts import lower_in_parts
from partitioner.lower_whole import lower_whole
from partitioner.partitioner import CoreMLPartitioner
from partitioner.reporting.report import LoweringReport
from partitioner.support.decide import Rejection

_lock = threading.RLock()
"""Held while a program is lowered: torch and ExecuTorch keep the state of a tracing in globals, for all threads."""


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
    skip_ops_for_coreml_delegation: list[str] | None = None,
    lower_full_graph: bool = False,
    on_error: Literal["raise", "fallback"] = "raise",
    **misplaced: NoReturn,
) -> LoweredProgram:
    """Lowers an exported program to Core ML and writes it in ExecuTorch's format.

    A program that Core ML takes as a whole is converted as it was exported. This needs a fraction of the time of
    ``to_edge_transform_and_lower(...).to_executorch()``. Programs with operations outside Core ML, several methods,
    mutable buffers or dynamic shapes are lowered with those slower calls.

    Threads may call it at the same time; they are served one after the other.

    Args:
        programs: What `torch.export.export` returns, or a dict of them by method name.
        partitioner: The options of the lowering. Default: a `CoreMLPartitioner` with `compile_specs`.
        compile_specs: What `CoreMLBackend.generate_compile_specs` returns; not together with `partitioner`.
        config: How ExecuTorch writes the program.
        skip_ops_for_coreml_delegation: As for `CoreMLPartitioner`; not together with `partitioner`.
        lower_full_graph: The same.
        on_error: The same.
        misplaced: Arguments that belong elsewhere, and are refused.

    Raises:
        ArgumentError: `programs` are not exported, `partitioner` is no `CoreMLPartitioner`, or an argument belongs
            elsewhere; the message says where.
        ValueError: Both `partitioner` and its options are given.
        CompileSpecError: The compile specs are unreadable, or options contradict each other.
        ConversionError: Core ML Tools cannot convert an operation.
        DeploymentTargetError: The program needs a newer deployment target than the given one.
        UnsupportedOpError: The partitioner demands the whole graph, and Core ML does not take all of it; neither Core
            ML nor ExecuTorch has some operation; or the program is not ready (for example, in training mode).
        LoweringError: PyTorch or ExecuTorch failed on the program.
    """
    options = {
        "compile_specs": (compile_specs, None),
        "skip_ops_for_coreml_delegation": (skip_ops_for_coreml_delegation, None),
        "lower_full_graph": (lower_full_graph, False),
        "on_error": (on_error, "raise"),
    }
    refuse_misplaced(misplaced, ("programs", "partitioner", "config", *options))
    check_programs(programs)
    given = {name: value for name, (value, default) in options.items() if value is not default and value != default}
    chosen = partitioner_of(partitioner, given)
    exported = [programs] if isinstance(programs, ExportedProgram) else list(programs.values())
    with _lock, own_errors(exported):
        return _lowered(programs, chosen, config)


def _lowered(
    programs: ExportedProgram | Mapping[str, ExportedProgram],
    partitioner: CoreMLPartitioner,
    config: ExecutorchBackendConfig | None,
) -> LoweredProgram:
    if isinstance(programs, ExportedProgram):
        manager = _whole(programs, partitioner)
        if manager is not None:
            return LoweredProgram(manager.to_executorch(config), (), partitioner.report(), direct=True)
    methods = {"forward": programs} if isinstance(programs, ExportedProgram) else dict(programs)
    with torch.no_grad():  # buffers may be written to that parameters were computed into
        manager = lower_in_parts(methods, partitioner).to_executorch(config)
    return LoweredProgram(manager, partitioner.rejections, partitioner.report(), direct=False)


def _whole(program: ExportedProgram, partitioner: CoreMLPartitioner) -> Any:
    with torch.no_grad():
        try:
            return lower_whole(program, partitioner)
        except (ConversionError, DeploymentTargetError):
            if partitioner.on_error == "raise":
                raise
    return None  # what fails is found where it can stay outside
