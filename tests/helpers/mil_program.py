"""The MIL operations of a lowered program as a graph that can be walked in both directions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.proto import MIL_pb2, Model_pb2
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor
from torch.fx import GraphModule

from partitioner import CoreMLBackend, CoreMLPartitioner
from partitioner.format.blob import read_blob

SPEC_PATH = "model.mlpackage/Data/com.apple.CoreML/model.mlmodel"
UNSIGNED_OFFSET = 128.0
"""uint8 with zero point 128 and int8 with 0 are one grid; Core ML Tools turns some of the former into the latter."""

CONSTANTS = frozenset({"const", "constexpr_affine_dequantize", "constexpr_blockwise_shift_scale"})


@dataclass(eq=False)
class Op:
    """One operation; `readers` are the operations that read any of its outputs."""

    kind: str
    name: str
    arguments: dict[str, list[str]]
    producers: list["Op"] = field(default_factory=list)
    readers: list["Op"] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)

    @property
    def variable(self) -> list["Op"]:
        """The producers that are no constants."""
        return [producer for producer in self.producers if producer.kind not in CONSTANTS]

    @property
    def qparams(self) -> tuple[float, float]:
        """Scale and zero point of a quantize or dequantize, as of int8."""
        return self.values["scale"], self.values.get("zero_point", 0.0)

    def __repr__(self) -> str:
        return f"{self.kind} {self.name}"


def walk(start: Op, step: Callable[[Op], list[Op]], through: Callable[[Op], bool]) -> Iterator[Op]:
    """Yields the nearest operations in one direction that `through` does not hold for."""
    seen: set[Op] = set()
    stack = list(step(start))
    while stack:
        op = stack.pop()
        if op in seen:
            continue
        seen.add(op)
        if through(op):
            stack.extend(step(op))
        else:
            yield op


def lowered_operations(converted: GraphModule, inputs: tuple[Tensor, ...], target: Any = ct.target.iOS17) -> list[Op]:
    """Lowers a converted graph and returns the operations of its only delegate; what stays outside is an error."""
    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=target)
    edge = to_edge_transform_and_lower(
        torch.export.export(converted, inputs), partitioner=[CoreMLPartitioner(compile_specs=specs)]
    )
    module = edge.exported_program().graph_module
    (delegate,) = (child for name, child in module.named_children() if name.startswith("lowered_module"))
    model = Model_pb2.Model()
    model.ParseFromString(bytes(read_blob(delegate.processed_bytes)[SPEC_PATH]))
    (function,) = model.mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    return _linked(block.operations, [feature.name for feature in function.inputs])


def _linked(messages: Any, inputs: list[str]) -> list[Op]:
    makers = {name: Op("input", name, {}) for name in inputs}
    scalars: dict[str, float] = {}
    ops = list(makers.values())
    for message in messages:
        names = {key: [binding.name for binding in value.arguments] for key, value in message.inputs.items()}
        op = Op(message.type, message.outputs[0].name, names)
        for key, value in message.inputs.items():
            for binding in value.arguments:
                found = (
                    _scalar(binding.value) if binding.WhichOneof("binding") == "value" else scalars.get(binding.name)
                )
                if found is not None:
                    op.values[key] = found
        if message.type == "const":
            found = _scalar(message.attributes["val"])
            if found is not None:
                scalars[op.name] = found
        for name in dict.fromkeys(name for found in names.values() for name in found if name in makers):
            op.producers.append(makers[name])
            makers[name].readers.append(op)
        makers.update({output.name: op for output in message.outputs})
        ops.append(op)
    return ops


def _scalar(value: Any) -> float | None:
    """Returns a number that is stored in the program itself, uint8 as int8; None for anything else."""
    tensor = value.immediateValue.tensor
    for kind in ("floats", "ints", "bools"):
        numbers = getattr(tensor, kind).values
        if len(numbers) == 1:
            return float(numbers[0])
    data = tensor.bytes.values
    if len(data) == 2:
        return float(np.frombuffer(data, np.float16)[0])
    if len(data) == 1:
        unsigned = value.type.tensorType.dataType == MIL_pb2.UINT8
        return float(data[0]) - UNSIGNED_OFFSET if unsigned else float(np.frombuffer(data, np.int8)[0])
    return None
