"""Refusals of operations that stay outside Core ML and that ExecuTorch cannot run."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch
from torch.fx import Node

from partitioner.errors import UnsupportedOpError
from partitioner.graph.nodes import op_name, place, skip_names
from partitioner.support.kernels import EXECUTORCH_LIBRARIES, has_kernel, overload_of

_ADVICE: Mapping[str, str] = MappingProxyType(
    {"while_loop": "Write a counted loop as a loop of Python, which torch.export unrolls"}
)
"""Operator -> what to write in place of it."""

_OTHER_LIBRARY = (
    "Register a form of {0} that writes into a given tensor, which ExecuTorch's runtime calls: "
    'torch.library.Library("{1}", "FRAGMENT").define("{2}.out(..., *, Tensor(a!) out) -> Tensor(a!)")'
)


def refuse_without_kernels(nodes: Iterable[Node], skipped: frozenset[str]) -> None:
    """Refuses control flow and operations of ATen's core set that stay outside Core ML and have no kernel there.

    Operations outside that set are refused by ExecuTorch itself, unless its configuration lists them.

    Args:
        nodes: The operations of an edge program that stay outside Core ML.
        skipped: Lower-case names of the operators that the user keeps outside Core ML; these may have kernels of the
            user's own, or go to another partitioner.

    Raises:
        UnsupportedOpError: Names the operations, their source lines and what to do.
    """
    found = [node for node in nodes if _is_core(node) and not has_kernel(node.target)]
    found = [node for node in found if not skip_names(node) & skipped]
    if not found:
        return
    message = without_kernels(found)
    names = dict.fromkeys(op_name(node).lower() for node in found if overload_of(node.target) is not None)
    if names:
        message += (
            ". Where another partitioner takes them, or your runtime has kernels of its own: "
            f"CoreMLPartitioner(skip_ops_for_coreml_delegation={list(names)})"
        )
    raise UnsupportedOpError(message)


def without_kernels(nodes: Iterable[Node]) -> str:
    """Returns what to say of operations that neither side can run."""
    found = list(nodes)
    places = "\n  ".join(dict.fromkeys(map(place, found)))
    advice = dict.fromkeys(_advice(node) for node in found)
    return "\n".join([f"neither Core ML nor ExecuTorch has:\n  {places}", *advice])


def _advice(node: Node) -> str:
    operator = overload_of(node.target)
    if operator is None or operator.namespace in EXECUTORCH_LIBRARIES:
        return _ADVICE.get(op_name(node), "Write the model with other operations")
    return _OTHER_LIBRARY.format(op_name(node), operator.namespace, operator._schema.name.partition("::")[2])


def _is_core(node: Node) -> bool:
    operator = overload_of(node.target)
    return isinstance(node.target, torch._ops.HigherOrderOperator) or (
        operator is not None and torch.Tag.core in operator.tags
    )
