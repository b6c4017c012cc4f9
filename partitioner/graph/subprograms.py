"""Copies of parts of a program as separate programs, which can be converted separately."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from partitioner.graph.nodes import tensor_of
from partitioner.graph.ranks import is_high
from partitioner.limits import BOUNDARY_DTYPES


def subprogram(
    program: ExportedProgram, nodes: Collection[Node], tensors: Mapping[str, torch.Tensor] | None = None
) -> ExportedProgram | None:
    """Copies some operations of a program into a separate program.

    Args:
        program: An ATen or edge program. It is not changed.
        nodes: ``call_function`` nodes of the program. Values that they read from other nodes become inputs.
        tensors: Values of constants, by their name in the program, to use instead of the program's own values.

    Returns:
        The separate program. Its outputs are the values that other nodes read and that a Core ML model can return. None
        when there are no such values, or when an input would not be a tensor.
    """
    chosen = set(nodes)
    ordered = [node for node in program.graph.nodes if node in chosen]
    read = [value for node in ordered for value in node.all_input_nodes if value not in chosen]
    inputs = [value for value in dict.fromkeys(read) if value.op != "get_attr"]
    results = [node for node in ordered if _leaves(node, chosen)]
    if not results or any(tensor_of(value) is None for value in inputs):
        return None
    specs = {value: _input_spec(program, value) for value in inputs}
    inputs.sort(key=lambda value: specs[value].kind == InputKind.USER_INPUT)
    graph, copies = Graph(), {}
    root = torch.nn.Module()
    for value in inputs:
        copies[value] = _named_like(graph.placeholder(value.name), value)
        copies[value].target = value.name
        copies[value].meta = dict(value.meta)
    for value in dict.fromkeys(value for value in read if value.op == "get_attr"):
        setattr(root, str(value.target), getattr(program.graph_module, str(value.target)))
        copies[value] = graph.node_copy(value)
    for node in ordered:
        copies[node] = _named_like(graph.node_copy(node, lambda value: copies[value]), node)
    graph.output(tuple(copies[node] for node in results))
    outputs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(copies[node].name), None) for node in results]
    return _program(program, GraphModule(root, graph), [specs[value] for value in inputs], outputs, tensors or {})


def _named_like(copy: Node, original: Node) -> Node:
    """Gives a copy the name of its original; a new graph may have changed it (``input`` is a builtin)."""
    copy.name = original.name
    return copy


def _leaves(node: Node, chosen: Collection[Node]) -> bool:
    """Returns whether a value is read outside the chosen nodes (or nowhere) and Core ML models can return it."""
    tensor = tensor_of(node)
    if tensor is None or tensor.dtype not in BOUNDARY_DTYPES or is_high(node):
        return False
    return not node.users or any(user not in chosen for user in node.users)


def _input_spec(program: ExportedProgram, value: Node) -> InputSpec:
    """Returns the input specification of a value in the separate program.

    Constants stay constants. Buffers that the program writes, and all other values, become inputs.
    """
    given = {spec.arg.name: spec for spec in program.graph_signature.input_specs}.get(value.name)
    if given is None or given.target in program.graph_signature.buffers_to_mutate.values():
        return InputSpec(InputKind.USER_INPUT, TensorArgument(value.name), None)
    return given


def _program(
    program: ExportedProgram,
    module: GraphModule,
    inputs: list[InputSpec],
    outputs: list[OutputSpec],
    tensors: Mapping[str, torch.Tensor],
) -> ExportedProgram:
    names = {str(spec.target) for spec in inputs if spec.kind != InputKind.USER_INPUT}
    users = [spec.arg.name for spec in inputs if spec.kind == InputKind.USER_INPUT]

    def chosen(table: Mapping[str, Any]) -> dict[str, Any]:
        return {name: tensors.get(name, value) for name, value in table.items() if name in names}

    signature = ModuleCallSignature(
        inputs=[],
        outputs=[],
        in_spec=pytree.tree_flatten((tuple(users), {}))[1],
        out_spec=pytree.tree_flatten([spec.arg.name for spec in outputs])[1],
    )
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=ExportGraphSignature(input_specs=inputs, output_specs=outputs),
        state_dict=chosen(program.state_dict),
        range_constraints=dict(program.range_constraints),
        module_call_graph=[ModuleCallEntry("", signature)],
        constants=chosen(program.constants),
        verifiers=list(program.verifiers),
    )
