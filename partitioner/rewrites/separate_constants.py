"""Constants of their own for the branches of `torch.cond` and for other control flow.

ExecuTorch moves a constant into the delegate that reads it, unless something else reads it too. It does not see that
control flow reads a constant, because its operands are in a tuple.
"""

from dataclasses import replace
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputSpec, TensorArgument
from torch.fx import Node

from partitioner.graph.nodes import constant_names

_SUFFIX = "_of_branches"


def separate_constants(program: ExportedProgram) -> None:
    """Gives control flow, in place, its own placeholders of constants that other operations read too.

    Args:
        program: A program in functional form, with its own tables of constants.
    """
    names = constant_names(program)
    for node in list(program.graph.nodes):
        if node.op == "placeholder" and node.name in names:
            branching = [user for user in node.users if isinstance(user.target, torch._ops.HigherOrderOperator)]
            if branching and len(branching) < len(node.users):
                _separate(program, node, branching)


def _separate(program: ExportedProgram, node: Node, users: list[Node]) -> None:
    with program.graph.inserting_after(node):
        copy = program.graph.placeholder(f"{node.name}{_SUFFIX}")
    copy.meta = dict(node.meta)
    for user in users:
        user.replace_input_with(node, copy)
    signature = program.graph_signature
    specs = [part for spec in signature.input_specs for part in _with_copy(spec, node, copy)]
    program._graph_signature = ExportGraphSignature(specs, list(signature.output_specs))
    target = next(str(spec.target) for spec in specs if spec.arg.name == node.name)
    for table in (program.state_dict, program.constants):
        if target in table:
            table[f"{target}{_SUFFIX}"] = _another(table[target])
    program.graph_module.recompile()


def _with_copy(spec: InputSpec, node: Node, copy: Node) -> list[InputSpec]:
    if spec.arg.name != node.name:
        return [spec]
    return [spec, replace(spec, arg=TensorArgument(copy.name), target=f"{spec.target}{_SUFFIX}")]


def _another(value: torch.Tensor) -> Any:
    """Returns another tensor with the same memory; torch tells tensors apart by identity."""
    same = value.detach()
    return torch.nn.Parameter(same, value.requires_grad) if isinstance(value, torch.nn.Parameter) else same
