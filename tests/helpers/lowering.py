"""Shared by the tests of the lowering."""

from collections import Counter as Tally
from typing import Any

import coremltools as ct
import torch
from coremltools.proto import MIL_pb2, Model_pb2
from executorch.exir import EdgeProgramManager, to_edge_transform_and_lower
from torch import Tensor, nn

from partitioner import CoreMLBackend, CoreMLPartitioner
from partitioner.format.blob import read_blob

DTYPE_NAMES = {value.number: value.name for value in MIL_pb2.DataType.DESCRIPTOR.values}
"""The code of a dtype in protobufs -> its name."""

SPEC_PATH = "model.mlpackage/Data/com.apple.CoreML/model.mlmodel"
WEIGHTS_PATH = "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"


def lower(model: nn.Module, inputs: tuple[Any, ...], *, partitioner: Any = None, **options: Any) -> EdgeProgramManager:
    """Exports and lowers; `options` are those of `CoreMLBackend.generate_compile_specs`."""
    if partitioner is None:
        partitioner = CoreMLPartitioner(compile_specs=CoreMLBackend.generate_compile_specs(**options))
    return to_edge_transform_and_lower(torch.export.export(model, inputs), partitioner=[partitioner])


def calls(manager: EdgeProgramManager, method: str = "forward") -> dict[str, int]:
    """How often each operation is called, `getitem` left out."""
    nodes = manager.exported_program(method).graph.nodes
    counts = Tally(str(node.target) for node in nodes if node.op == "call_function")
    counts.pop("<built-in function getitem>", None)
    return dict(counts)


def delegates(manager: EdgeProgramManager, method: str = "forward") -> list[Any]:
    module = manager.exported_program(method).graph_module
    return [child for name, child in module.named_children() if name.startswith("lowered_module")]


def blob(manager: EdgeProgramManager) -> bytes:
    (delegate,) = delegates(manager)
    return delegate.processed_bytes


def spec(manager: EdgeProgramManager) -> Any:
    model = Model_pb2.Model()
    model.ParseFromString(bytes(read_blob(blob(manager))[SPEC_PATH]))
    return model


def operations(manager: EdgeProgramManager) -> list[Any]:
    """The MIL operations of the only delegate, constants left out."""
    (function,) = spec(manager).mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    return [operation for operation in block.operations if operation.type != "const"]


def target(manager: EdgeProgramManager) -> ct.target:
    return ct.target(spec(manager).specificationVersion)


class CallCounter(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return x + self.calls


class Function(nn.Module):
    """A module that calls a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor):
        return self.function(*inputs)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x)
        return self.total * 2


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
