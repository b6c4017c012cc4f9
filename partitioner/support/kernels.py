"""ExecuTorch's own kernels: whether it can run an operation that Core ML does not take."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import executorch.kernels
import torch
from executorch.exir.program._program import _default_decomposition_table
from torch._export.utils import _is_cia_op
from torch.fx import Node

from partitioner.errors import UnsupportedOpError
from partitioner.graph.nodes import op_name, place, skip_names

_LISTS = (
    "portable/functions.yaml",
    "portable/custom_ops.yaml",
    "portable/et_copy_ops.yaml",
    "quantized/quantized.yaml",
)
_ENTRY = re.compile(r"^- (?:op|func): ([\w:]+\.?\w*)", re.MULTILINE)

_BEYOND_THE_LISTS = frozenset({"aten::linear.out", "aten::_fft_r2c.out", "aten::_fft_c2r.out"})
"""Kernels that ExecuTorch's optimized library adds to the portable ones; every prebuilt runtime has them."""

_NO_KERNEL_NEEDED = frozenset({"aten::sym_size.int", "aten::sym_numel", "aten::_local_scalar_dense"})
"""Operations that ExecuTorch's runtime has built in."""

_QUANTIZED = "quantized_decomposed"
_OURS_TO_CHECK = frozenset({"aten", _QUANTIZED, "dim_order_ops"})
"""Libraries of operators whose kernels are ExecuTorch's; the kernels of other libraries come from elsewhere."""


_OPTIONS = frozenset({"dtype", "layout", "device", "pin_memory"})
"""Arguments that say what kind of tensor the result is."""


@cache
def _kernels() -> frozenset[str]:
    """Returns the names of ExecuTorch's kernels, from the lists that it is built from."""
    folder = Path(next(iter(executorch.kernels.__path__)))
    names = {name for part in _LISTS for name in _ENTRY.findall((folder / part).read_text())}
    return frozenset({name if "::" in name else f"aten::{name}" for name in names}) | _BEYOND_THE_LISTS


@cache
def _decomposed() -> frozenset[object]:
    return frozenset(_default_decomposition_table())


@cache
def has_kernel(target: Any) -> bool:
    """Returns whether ExecuTorch runs calls of an operator as they are, or leaves that to another library.

    Args:
        target: The target of a ``call_function`` node of an ATen or edge program.
    """
    operator = target if isinstance(target, torch._ops.OpOverload) else getattr(target, "_op", None)
    if not isinstance(operator, torch._ops.OpOverload) or operator.namespace not in _OURS_TO_CHECK:
        return True
    name = _full_name(operator)
    if name in _NO_KERNEL_NEEDED:
        return True
    if operator.namespace == _QUANTIZED:  # its kernels' names are known only once ExecuTorch's library is loaded
        return f"{name}{'_' if '.' in name else '.'}out" in _kernels()
    return not _kernels().isdisjoint(_writing(operator))


def _writing(operator: torch._ops.OpOverload) -> set[str]:
    """Returns the names of the overloads that write the results of an operator into given tensors, usually one."""
    packet = getattr(getattr(torch.ops, operator.namespace), operator._schema.name.partition("::")[2])
    overloads = [getattr(packet, name) for name in packet.overloads()]
    wanted = _read(operator)
    return {_full_name(overload) for overload in overloads if _read(overload) == wanted and overload is not operator}


def _read(operator: torch._ops.OpOverload) -> list[tuple[str, str]]:
    """Returns the names and types of the arguments, without those that a given result makes needless."""
    arguments = [argument for argument in operator._schema.arguments if not argument.is_out]
    return [(argument.name, str(argument.type)) for argument in arguments if argument.name not in _OPTIONS]


def is_decomposed(target: Any) -> bool:
    """Returns whether ExecuTorch replaces calls of an ATen operator by calls of others."""
    if not isinstance(target, torch._ops.OpOverload) or _full_name(target) in _NO_KERNEL_NEEDED:
        return False
    return target in _decomposed() or _is_cia_op(target)


def _full_name(operator: torch._ops.OpOverload) -> str:
    schema = operator._schema
    return f"{schema.name}.{schema.overload_name}".rstrip(".")


def runs_outside(node: Node) -> bool:
    """Returns whether ExecuTorch has a kernel for an operation, or decomposes it into operations with kernels.

    An edge program is decomposed already; what is still in it needs a kernel.
    """
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return has_kernel(target)
    is_view = any(result.alias_info is not None for result in target._schema.returns)  # replaced by its copy
    return is_view or is_decomposed(target) or has_kernel(target)


def runs_if_skipped(node: Node) -> bool:
    """Returns whether ExecuTorch can run an operation that is kept outside Core ML from the beginning.

    It then decomposes the operation, which it does not where Core ML takes every call of the operator.
    """
    operator = node.target if isinstance(node.target, torch._ops.OpOverload) else getattr(node.target, "_op", None)
    return is_decomposed(operator) or has_kernel(node.target)


def refuse_without_kernels(nodes: Iterable[Node], skipped: frozenset[str]) -> None:
    """Refuses operations of ATen's core set that stay outside Core ML and have no kernel there.

    Operations outside that set are refused by ExecuTorch itself, unless its configuration lists them.

    Args:
        nodes: The operations of an edge program that stay outside Core ML.
        skipped: Lower-case names of the operators that the user keeps outside Core ML; these may have kernels of the
            user's own, or go to another partitioner.

    Raises:
        UnsupportedOpError: Names the operations, their source lines and what to do.
    """
    found = [
        node for node in nodes if _is_core(node) and not has_kernel(node.target) and not skip_names(node) & skipped
    ]
    if found:
        names = ", ".join(repr(name.lower()) for name in dict.fromkeys(map(op_name, found)))
        raise UnsupportedOpError(
            f"{without_kernels(found)}. Where another partitioner takes them, or your runtime has kernels of its own: "
            f"CoreMLPartitioner(skip_ops_for_coreml_delegation=[{names}])"
        )


def without_kernels(nodes: Iterable[Node]) -> str:
    """Returns what to say of operations that neither side can run."""
    lines = "\n  ".join(dict.fromkeys(map(place, nodes)))
    return f"neither Core ML nor ExecuTorch has:\n  {lines}\nWrite the model with other operations"


def _is_core(node: Node) -> bool:
    operator = getattr(node.target, "_op", node.target)
    return isinstance(operator, torch._ops.OpOverload) and torch.Tag.core in operator.tags
