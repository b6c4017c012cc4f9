"""ExecuTorch's own kernels: whether it can run an operation that Core ML does not take."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import executorch.kernels
import torch
from executorch.exir.program._program import _default_decomposition_table
from torch._export.utils import _is_cia_op
from torch.fx import Node

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
EXECUTORCH_LIBRARIES = frozenset({"aten", _QUANTIZED, "dim_order_ops"})
"""Libraries of operators whose kernels are ExecuTorch's; the kernels of other libraries come from elsewhere."""


_CONTROL_FLOW = frozenset({"cond", "map_impl", "scan", "executorch_call_delegate"})
"""Control flow that ExecuTorch has instructions for, and the call of a delegate."""

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


def overload_of(target: Any) -> torch._ops.OpOverload | None:
    """Returns the ATen operator of a node's target in an ATen or edge program; None for functions and control flow."""
    operator = target if isinstance(target, torch._ops.OpOverload) else getattr(target, "_op", None)
    return operator if isinstance(operator, torch._ops.OpOverload) else None


@cache
def has_kernel(target: Any) -> bool:
    """Returns whether ExecuTorch runs calls of an operator as they are.

    Another library is taken to have a kernel for each of its operators that has a form that writes into a given tensor.

    Args:
        target: The target of a ``call_function`` node of an ATen or edge program.
    """
    if isinstance(target, torch._ops.HigherOrderOperator):
        return target.__name__ in _CONTROL_FLOW
    operator = overload_of(target)
    if operator is None:
        return True
    if operator.namespace not in EXECUTORCH_LIBRARIES:
        return operator._schema.is_mutable or bool(_writing(operator))
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
    return is_decomposed(overload_of(node.target)) or has_kernel(node.target)
