"""Lowering through ExecuTorch's edge dialect, for programs that Core ML does not take as a whole."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from executorch.exir import EdgeCompileConfig, EdgeProgramManager, to_edge_transform_and_lower
from torch._export.verifier import SpecViolationError
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from partitioner.errors import UnsupportedOpError
from partitioner.graph.nodes import constant_values, op_name, place, tensor_of
from partitioner.partitioner import CoreMLPartitioner
from partitioner.support.decide import refusal
from partitioner.support.kernels import has_kernel, runs_outside
from partitioner.support.unrunnable import without_kernels

_OUTSIDE_CORE_ATEN = re.compile(r"torch\._ops\.(\S+) is not in Core ATen opset")


def lower_in_parts(programs: Mapping[str, ExportedProgram], partitioner: CoreMLPartitioner) -> EdgeProgramManager:
    """Lowers programs to Core ML; ExecuTorch runs the operations that Core ML does not take.

    Args:
        programs: What `torch.export.export` returns, by method name.
        partitioner: The partitioner, which holds the options of the lowering.

    Raises:
        UnsupportedOpError: A program computes with complex numbers, or neither Core ML nor ExecuTorch has some
            operation. The message names all of these operations and their source lines.
        PartitionerError: The partitioner or the backend raised it.
    """
    nodes = [node for program in programs.values() for node in program.graph.nodes if node.op == "call_function"]
    _refuse_complex(nodes)
    manager = _in_parts(programs, partitioner, nodes)
    _refuse_unrunnable(manager)
    return manager


def _in_parts(
    programs: Mapping[str, ExportedProgram], partitioner: CoreMLPartitioner, nodes: Iterable[Node]
) -> EdgeProgramManager:
    try:
        return to_edge_transform_and_lower(dict(programs), partitioner=[partitioner])
    except SpecViolationError as error:
        taken = list(_taken_only(programs.values(), partitioner))
        if not taken or not set(map(str, taken)) & set(_OUTSIDE_CORE_ATEN.findall(str(error))):
            raise _refused(error, nodes) from error
    config = EdgeCompileConfig(_core_aten_ops_exception_list=taken)
    try:
        return to_edge_transform_and_lower(dict(programs), partitioner=[partitioner], compile_config=config)
    except SpecViolationError as error:
        raise _refused(error, nodes) from error


def _taken_only(programs: Iterable[ExportedProgram], partitioner: CoreMLPartitioner) -> Iterator[Any]:
    """Yields operations that Core ML has and ExecuTorch lacks; the edge dialect admits these only on request."""
    for program in programs:
        constants = constant_values(program, partitioner.take_over_constant_data)
        for node in program.graph.nodes:
            outside = node.op != "call_function" or runs_outside(node)
            if not outside and refusal(node, partitioner.skipped, constants) is None:
                yield node.target


def _refuse_complex(nodes: Iterable[Node]) -> None:
    found = [node for node in nodes if (value := tensor_of(node)) is not None and value.dtype.is_complex]
    if found:
        raise UnsupportedOpError(
            "neither Core ML nor ExecuTorch's kernels compute with complex numbers:\n  "
            + "\n  ".join(dict.fromkeys(map(place, found)))
            + "\nCompute real and imaginary parts by themselves, as real tensors"
        )


def _refuse_unrunnable(manager: EdgeProgramManager) -> None:
    """Refuses a program with operations that ExecuTorch has no kernels for; nothing else can take them any more."""
    graphs = [manager.exported_program(name).graph_module for name in manager.methods]
    modules = [module for graph in graphs for module in graph.modules() if isinstance(module, GraphModule)]
    found = [
        node
        for module in modules
        for node in module.graph.nodes
        if node.op == "call_function" and not has_kernel(node.target)
    ]
    if found:
        raise UnsupportedOpError(without_kernels(found))


def _refused(error: Exception, nodes: Iterable[Node]) -> UnsupportedOpError:
    names = dict.fromkeys(_OUTSIDE_CORE_ATEN.findall(str(error)))
    if not names:
        return UnsupportedOpError(f"ExecuTorch does not take the program: {error}")
    places = {_plain(op_name(node)): place(node) for node in nodes}
    lines = [places.get(_plain(name), name) for name in names]
    config = f"EdgeCompileConfig(_core_aten_ops_exception_list=[{', '.join(f'torch.ops.{name}' for name in names)}])"
    return UnsupportedOpError(
        "neither Core ML nor ExecuTorch has:\n  "
        + "\n  ".join(lines)
        + "\nWrite the model with other operations. Where your runtime has a kernel of its own: "
        f"to_edge_transform_and_lower(program, partitioner=[CoreMLPartitioner()], compile_config={config})"
    )


def _plain(name: str) -> str:
    """Returns an operator's name without namespace, overload and outer underscores.

    An operation and the ones that it is decomposed into then match: ``linalg_svd`` and ``_linalg_svd``.
    """
    return name.split(".")[1].strip("_") if "." in name else name
