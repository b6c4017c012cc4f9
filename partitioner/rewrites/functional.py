"""Functional form of exported programs, without a second trace where none is needed.

``program.run_decompositions({})`` traces the whole program to replace operators that may alias or write. Most programs
have few of them, and most of these have a direct counterpart. They are replaced one by one here. Only a program with
other such operators is traced.
"""

import copy
import operator
from typing import Any

import torch
from torch._export.verifier import Verifier
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, OutputKind
from torch.fx import Graph, GraphModule, Node
from torch.fx.traceback import NodeSource, NodeSourceAction
from torch.nn import Parameter

from partitioner.graph.nodes import is_viewable
from partitioner.rewrites.functional_forms import (
    IGNORED,
    RENAMED,
    VIEWS,
    NotObviousError,
    out_of_place,
    refuse_composite,
    value_of,
)

_ATEN = torch.ops.aten


class FunctionalProgram(ExportedProgram):
    """A program that is in functional form already, so that an empty table asks for no trace."""

    def run_decompositions(
        self, decomp_table: Any = None, decompose_custom_triton_ops: bool = False
    ) -> ExportedProgram:
        """Returns the program itself when the table is empty."""
        if decomp_table is not None and len(decomp_table) == 0:
            return self
        return super().run_decompositions(decomp_table, decompose_custom_triton_ops)


def functional(program: ExportedProgram) -> ExportedProgram:
    """Puts a program into functional form.

    Args:
        program: What `torch.export.export` returns. It is not changed.

    Returns:
        A program with the same inputs, outputs and results. Nothing in it is written in place, and every operator
        either always returns a view or never does. It has its own tables of parameters and constants.
    """
    program = copy.copy(program)
    program._state_dict = dict(program.state_dict)
    program._constants = dict(program.constants)
    try:
        graph = _rewritten(program)
    except NotObviousError:
        return _known_functional(program.run_decompositions({}))
    signature = program.graph_signature
    return FunctionalProgram(
        root=GraphModule({}, graph),
        graph=graph,
        graph_signature=ExportGraphSignature(list(signature.input_specs), list(signature.output_specs)),
        state_dict=program.state_dict,
        range_constraints={},
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=[Verifier],
    )


def _known_functional(program: ExportedProgram) -> FunctionalProgram:
    known = FunctionalProgram.__new__(FunctionalProgram)
    known.__dict__.update(program.__dict__)
    return known


def _rewritten(program: ExportedProgram) -> Graph:
    outputs = program.graph_signature.output_specs
    plain = all(type(value) in (torch.Tensor, Parameter) for value in program.state_dict.values())
    if not plain or program.range_constraints or any(spec.kind != OutputKind.USER_OUTPUT for spec in outputs):
        raise NotObviousError
    graph = _Rewriter(program).graph
    results = graph.output_node().args[0]
    names = [getattr(result, "name", None) for result in results]  # type: ignore[union-attr]
    if names != [getattr(spec.arg, "name", None) for spec in outputs]:  # a result that was written to afterwards
        raise NotObviousError
    return graph


class _Rewriter:
    """A writer of the functional graph of a program.

    Attributes:
        graph: The functional graph; nodes that survive keep their names.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.graph = Graph()
        self._new: dict[Node, Node] = {}
        # Node -> the node that owns its memory.
        self._owner: dict[Node, Node] = {}
        self._viewed: set[Node] = set()
        for node in program.graph.nodes:
            self._write(node)
        self.graph.eliminate_dead_code()

    def _write(self, node: Node) -> None:
        if node.op != "call_function":
            if node.op == "get_attr":
                raise NotObviousError
            self._new[node] = self._copied(node, node.target, node.args, node.kwargs)
        elif node.target is operator.getitem:
            self._new[node] = self._copied(node, node.target, node.args, node.kwargs)
            self._viewed.update(self._owners(node))
        elif not isinstance(node.target, torch._ops.OpOverload):
            raise NotObviousError
        elif node.target in VIEWS:
            self._viewed.update(self._owners(node))
            self._new[node] = self._replaced(node)
        elif node.target == _ATEN.batch_norm.default:
            self._new[node] = self._owner[node] = self._normalized(node)
        elif node.target._schema.is_mutable:
            self._write_in_place(node)
        elif node.target not in IGNORED:
            self._write_plain(node)

    def _write_plain(self, node: Node) -> None:
        target: Any = RENAMED.get(node.target, node.target)
        refuse_composite(target)
        self._new[node] = self._copied(node, target, node.args, node.kwargs)
        if any(result.alias_info is not None for result in target._schema.returns):
            self._viewed.update(self._owners(node))
        else:
            self._owner[node] = node

    def _write_in_place(self, node: Node) -> None:
        """Writes ``y = op_(x)`` as ``y = op(x)``; later readers of x read y."""
        changed = node.args[0]
        target = out_of_place(node)
        refuse_composite(target)
        owner = self._owner.get(changed) if isinstance(changed, Node) else None
        if owner is None or owner in self._viewed:
            raise NotObviousError
        dtypes = {value_of(value).dtype for value in node.all_input_nodes}
        if len(dtypes) > 1 or value_of(changed).shape != value_of(node).shape:
            raise NotObviousError
        result = self._copied(node, target, node.args, node.kwargs)
        self._owner[node] = owner
        for alias, its_owner in self._owner.items():
            if its_owner is owner:
                self._new[alias] = result
        self._new[node] = result

    def _owners(self, node: Node) -> set[Node]:
        return {self._owner[value] for value in node.all_input_nodes if value in self._owner}

    def _replaced(self, node: Node) -> Node:
        replacement = VIEWS[node.target](node)
        source = node.args[0]
        if not isinstance(source, Node):
            raise NotObviousError
        if replacement is None:
            seen = source.op == "placeholder" or any(user.op == "output" for user in node.users)
            return self._copied(node, _ATEN.clone.default, (source,), {}) if seen else self._new[source]
        target, arguments, keywords = replacement
        if target is _ATEN.view.default and not is_viewable(value_of(source), *arguments):
            copied = self._inserted(
                node, _ATEN.clone.default, (self._new[source],), {"memory_format": torch.contiguous_format}
            )
            copied.meta = _meta(node, value_of(source).contiguous())
            return self._created(node, target, (copied, *arguments), {})
        return self._copied(node, target, (source, *arguments), keywords)

    def _inserted(self, node: Node, target: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Node:
        """Writes an operation in front of the one that will have the node's name."""
        return self.graph.create_node("call_function", target, arguments, keywords, f"{node.name}_source")

    def _normalized(self, node: Node) -> Node:
        source, weight, bias, mean, variance, training, momentum, epsilon, *_ = node.args
        if training or mean is None:
            raise NotObviousError
        target = _ATEN._native_batch_norm_legit_no_training.default
        operands = map(self._argument, (source, weight, bias, mean, variance, momentum, epsilon))
        whole = self._inserted(node, target, tuple(operands), {})
        value = value_of(node)
        whole.meta = _meta(node, (value, value.new_empty((0,)), value.new_empty((0,))))
        return self._created(node, operator.getitem, (whole, 0), {})

    def _copied(self, node: Node, target: Any, arguments: Any, keywords: Any) -> Node:
        return self._created(node, target, self._argument(arguments), self._argument(keywords))

    def _created(self, node: Node, target: Any, arguments: Any, keywords: Any) -> Node:
        result = self.graph.create_node(node.op, target, arguments, keywords, node.name, node.type)
        result.name = node.name  # also where fx would prefer another one, as for an input named "input"
        result.meta = _meta(node, node.meta.get("val")) if node.op == "call_function" else dict(node.meta)
        return result

    def _argument(self, value: Any) -> Any:
        return torch.fx.node.map_arg(value, lambda node: self._new[node])


def _meta(node: Node, value: Any) -> dict[str, Any]:
    """Returns the metadata of a node that replaces another; ``from_node`` names the other."""
    source = NodeSource(node, __name__, NodeSourceAction.REPLACE)
    return {**node.meta, "val": value, "from_node": [source]}
