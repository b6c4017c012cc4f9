"""Lowering without ExecuTorch's edge dialect, for programs that Core ML takes as a whole.

The edge dialect prepares programs for operators that run on ExecuTorch's own kernels. When Core ML takes the whole
program, no operator runs on those kernels. The passes of the dialect and its copies of the program are then skipped:
ExecuTorch gets a program with one delegate call.
"""

import operator

import torch
from executorch.exir import EdgeCompileConfig, EdgeProgramManager
from executorch.exir.backend.backend_details import PreprocessResult
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.delegate import executorch_call_delegate
from executorch.exir.lowered_backend_module import LoweredBackendModule
from executorch.exir.verification.verifier import EXIREdgeDialectVerifier
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_leaves

from partitioner.backend import CoreMLBackend
from partitioner.graph.nodes import tensor_of
from partitioner.limits import BOUNDARY_DTYPES
from partitioner.partitioner import CoreMLPartitioner
from partitioner.support.decide import decide


def lower_whole(program: ExportedProgram, partitioner: CoreMLPartitioner) -> EdgeProgramManager | None:
    """Lowers a program as one delegate call.

    Args:
        program: What `torch.export.export` returns.
        partitioner: The partitioner, which holds the options of the lowering.

    Returns:
        The lowered program, or None when Core ML does not take all of it this way.

    Raises:
        ConversionError: Core ML Tools cannot convert an operation.
        DeploymentTargetError: The program needs a newer deployment target than the given one.
    """
    if not _is_plain(program) or partitioner.skipped:  # the names on a skip list are those of the edge dialect
        return None
    program = partitioner.transform_for_pre_decomposition(program)
    if not _is_plain(program):  # writing in place shows only now
        return None
    if not partitioner.take_over_constant_data:
        return None
    decisions = decide(program, partitioner.skipped)
    if any(reason is not None for reason in decisions.values()):
        return None
    inputs, outputs = _ends(program)
    if len(set(outputs)) < len(outputs) or any(node.op != "call_function" or not _passes(node) for node in outputs):
        return None
    if any(not node.users or not _passes(node) for node in inputs):
        return None
    partitioner.record(program, decisions, 1)
    specs = partitioner.specs_for(program)
    result = CoreMLBackend.preprocess(program, specs)
    return EdgeProgramManager({"forward": _calling(program, inputs, outputs, specs, result)})


def _is_plain(program: ExportedProgram) -> bool:
    """Returns whether shapes are static, nothing is written in place, and all inputs and outputs are tensors."""
    signature = program.graph_signature
    kinds = {spec.kind for spec in signature.output_specs}
    ends = [spec.arg for spec in (*signature.input_specs, *signature.output_specs)]
    return (
        kinds == {OutputKind.USER_OUTPUT}
        and all(isinstance(end, TensorArgument) for end in ends)
        and all(map(_is_static, program.graph.nodes))
        and any(spec.kind == InputKind.USER_INPUT for spec in signature.input_specs)
    )


def _is_static(node: Node) -> bool:
    """Returns whether all sizes of a node's values are numbers.

    Nodes are checked, because taking tensor subclasses apart leaves symbols in the program that no value uses.
    """
    values = tree_leaves(node.meta.get("val"))
    sizes = [size for value in values if isinstance(value, torch.Tensor) for size in value.shape]
    return not any(isinstance(value, torch.SymInt) for value in (*values, *sizes))


def _ends(program: ExportedProgram) -> tuple[list[Node], list[Node]]:
    named = {node.name: node for node in program.graph.nodes}
    signature = program.graph_signature
    return [named[str(name)] for name in signature.user_inputs], [named[str(name)] for name in signature.user_outputs]


def _passes(node: Node) -> bool:
    tensor = tensor_of(node)
    if tensor is None or tensor.dtype not in BOUNDARY_DTYPES or any(not isinstance(s, int) for s in tensor.shape):
        return False
    return tuple(tensor.dim_order()) == tuple(range(tensor.dim()))


def _calling(
    program: ExportedProgram,
    inputs: list[Node],
    outputs: list[Node],
    specs: list[CompileSpec],
    result: PreprocessResult,
) -> ExportedProgram:
    """Returns an edge program that passes its inputs to the delegate and returns the delegate's outputs."""
    name = "lowered_module_0"
    outline = torch.export.export(_Outline(outputs), tuple(_example(node) for node in inputs))
    module = LoweredBackendModule(
        outline, CoreMLBackend.__name__, result.processed_bytes, specs, result.data_store_output
    )
    module.meta = {"debug_handle_map": result.debug_handle_map}
    graph = Graph()
    arguments = [_copied(graph.placeholder(node.name), node) for node in inputs]
    call = graph.call_function(executorch_call_delegate, (graph.get_attr(name), *arguments))
    call.meta["val"] = tuple(node.meta["val"] for node in outputs)
    items = [_copied(graph.call_function(operator.getitem, (call, index)), node) for index, node in enumerate(outputs)]
    graph.output(tuple(items))
    root = torch.nn.Module()
    root.add_module(name, module)
    signature = ExportGraphSignature(
        input_specs=[InputSpec(InputKind.USER_INPUT, TensorArgument(node.name), None) for node in arguments],
        output_specs=[OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in items],
    )
    return ExportedProgram(
        root=GraphModule(root, graph),
        graph=graph,
        graph_signature=signature,
        state_dict={},
        range_constraints={},
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants={},
        verifiers=[EXIREdgeDialectVerifier(edge_compile_config=EdgeCompileConfig(), class_only=True)],
    )


class _Outline(torch.nn.Module):
    """A stand-in for the delegate in ExecuTorch's passes, which trace it again and again.

    It knows only the shapes and dtypes of the results.
    """

    def __init__(self, outputs: list[Node]) -> None:
        super().__init__()
        self.shapes = [(tuple(node.meta["val"].shape), node.meta["val"].dtype) for node in outputs]

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in self.shapes)


def _example(node: Node) -> torch.Tensor:
    value = node.meta["val"]
    return torch.zeros(tuple(value.shape), dtype=value.dtype)


def _copied(node: Node, source: Node) -> Node:
    node.meta["val"] = source.meta["val"]
    return node
