"""Traces of a run: what every operation computed, and how long it took."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from partitioner.host.mil.model import Op
from partitioner.host.mil.types import TensorType


@dataclass(frozen=True)
class OpTrace:
    """One operation of a run.

    Attributes:
        type: MIL operation type.
        name: Name of its first output; of the operation itself when it has none.
        seconds: How long it took.
        outputs: Output name -> array of the declared type, or what else the operation returned, such as a list.
    """

    type: str
    name: str
    seconds: float
    outputs: Mapping[str, Any]


class TraceRecorder:
    """Collects an `OpTrace` of every operation, in the order in which they ran."""

    def __init__(self) -> None:
        """Starts an empty trace."""
        self.traces: list[OpTrace] = []

    def now(self) -> int:
        """Returns the nanoseconds of a monotonic clock."""
        return time.perf_counter_ns()

    def finished(self, op: Op, start: int, end: int, values: Sequence[Any]) -> None:
        """Keeps a copy of the outputs."""
        names = [value.name for value in op.outputs]
        arrays = (_copied(value) for value in declared_values(op, values))
        outputs = dict(zip(names, arrays, strict=True))
        self.traces.append(OpTrace(op.type, event_name(op), (end - start) * 1e-9, outputs))


def event_name(op: Op) -> str:
    """Returns the name under which an operation is reported: its first output's, which is unique in a program."""
    return op.outputs[0].name if op.outputs else op.name


def declared_values(op: Op, values: Sequence[Any]) -> list[Any]:
    """Returns the outputs of an operation, floating-point tensors in their declared type."""
    return [
        value.to(output.type.dtype.storage)
        if isinstance(value, torch.Tensor) and isinstance(output.type, TensorType) and output.type.dtype.is_float
        else value
        for output, value in zip(op.outputs, values, strict=True)
    ]


def _copied(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    # numpy has no bfloat16 and no 8-bit floats.
    known = value if value.dtype in _NUMPY_FLOATS or not value.is_floating_point() else value.float()
    return np.array(known.numpy())


_NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)
