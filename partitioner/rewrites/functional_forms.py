"""Functional forms of the operators that may return a view or write in place.

`VIEWS` and `RENAMED` are the tables; `partitioner.rewrites.functional` applies them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch._export.utils import _is_cia_op, _is_preservable_cia_op
from torch.fx import Node

from partitioner.graph.nodes import argument

_ATEN = torch.ops.aten

Replacement = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""Operation, arguments after the first, and keywords."""


class NotObviousError(Exception):
    """The functional form of an operator call cannot be written down without tracing the program."""


def _reshaped(node: Node) -> Replacement:
    return _ATEN.view.default, (list(value_of(node).shape),), {}


def _converted(node: Node) -> Replacement | None:
    """Returns the functional form of every overload of ``to``."""
    if {torch.channels_last, torch.channels_last_3d} & {*_formats(node.args), *_formats(node.kwargs.values())}:
        raise NotObviousError
    dtype = value_of(node).dtype
    if dtype == value_of(node.args[0]).dtype:
        return None
    return _ATEN._to_copy.default, (), {"dtype": dtype}


def _formats(values: Iterable[Any]) -> Iterator[torch.memory_format]:
    return (value for value in values if isinstance(value, torch.memory_format))


def _dropped(node: Node) -> None:
    if argument(node, 2, "train", False):
        raise NotObviousError


def _contiguous(node: Node) -> Replacement | None:
    if argument(node, 1, "memory_format", torch.contiguous_format) != torch.contiguous_format:
        raise NotObviousError
    if value_of(node.args[0]).is_contiguous():
        return None
    return _ATEN.clone.default, (), {"memory_format": torch.contiguous_format}


def _split(node: Node) -> Replacement:
    pieces, axis = node.args[1], argument(node, 2, "dim", 0)
    size = value_of(node.args[0]).shape[axis]
    if not isinstance(pieces, int) or len(node.meta["val"]) != pieces or size % pieces:
        raise NotObviousError
    return _ATEN.split.Tensor, (size // pieces, axis), {}


def _permuted(node: Node) -> Replacement:
    """Returns a transposition as the permutation that ExecuTorch would trace the program for."""
    order = list(range(value_of(node).dim()))
    first, second = node.args[1:]
    order[first], order[second] = order[second], order[first]  # type: ignore[index]
    return _ATEN.permute.default, (order,), {}


VIEWS: Mapping[Any, Callable[[Node], Replacement | None]] = MappingProxyType(
    {
        _ATEN.reshape.default: _reshaped,
        _ATEN.flatten.using_ints: _reshaped,
        _ATEN.view_as.default: _reshaped,
        _ATEN.reshape_as.default: _reshaped,
        _ATEN.unflatten.int: _reshaped,
        _ATEN.expand_as.default: lambda node: (_ATEN.expand.default, (list(value_of(node).shape),), {}),
        _ATEN.transpose.int: _permuted,
        _ATEN.to.dtype: _converted,
        _ATEN.to.dtype_layout: _converted,
        _ATEN.to.device: _converted,
        _ATEN.to.other: _converted,
        _ATEN.type_as.default: _converted,
        _ATEN.dropout.default: _dropped,
        _ATEN.dropout_.default: _dropped,
        _ATEN.feature_dropout.default: _dropped,
        _ATEN.feature_dropout_.default: _dropped,
        _ATEN.contiguous.default: _contiguous,
        _ATEN.chunk.default: _split,
        _ATEN.detach.default: lambda node: None,
        _ATEN.detach_.default: lambda node: None,
        _ATEN.lift_fresh_copy.default: lambda node: (_ATEN.clone.default, (), {}),
    }
)
"""Operation that may return a view -> its functional form; None: its input."""

RENAMED: Mapping[Any, Any] = MappingProxyType(
    {
        _ATEN.__and__.Tensor: _ATEN.bitwise_and.Tensor,
        _ATEN.__and__.Scalar: _ATEN.bitwise_and.Scalar,
        _ATEN.__or__.Tensor: _ATEN.bitwise_or.Tensor,
        _ATEN.__or__.Scalar: _ATEN.bitwise_or.Scalar,
        _ATEN.__xor__.Tensor: _ATEN.bitwise_xor.Tensor,
        _ATEN.__xor__.Scalar: _ATEN.bitwise_xor.Scalar,
    }
)
"""Operators that Python code calls -> the same under the name that ExecuTorch and Core ML Tools know."""

IGNORED = frozenset({_ATEN._assert_tensor_metadata.default})


def value_of(node: Any) -> torch.Tensor:
    """Returns the example value of a node.

    Raises:
        NotObviousError: It is no tensor, or one of dynamic shape.
    """
    value = node.meta.get("val") if isinstance(node, Node) else None
    if not isinstance(value, torch.Tensor) or any(not isinstance(size, int) for size in value.shape):
        raise NotObviousError
    return value


def refuse_composite(target: Any) -> None:
    """Refuses a composite operator, unless it may stay whole.

    Raises:
        NotObviousError: The operation may not stay whole.
    """
    if _is_cia_op(target) and not _is_preservable_cia_op(target):
        raise NotObviousError


def out_of_place(node: Node) -> Any:
    """Returns the operator that returns what an in-place operator writes into its first argument.

    Raises:
        NotObviousError: There is none, or the operation writes elsewhere.
    """
    target: Any = node.target
    name = target._schema.name.split("::")[1]
    packet = getattr(_ATEN, name.removesuffix("_"), None)
    found = getattr(packet, target._overloadname, None)
    written = [item.name for item in target._schema.arguments if item.alias_info is not None]
    first = target._schema.arguments[0].name
    if target.namespace != "aten" or not name.endswith("_") or found is None or written != [first]:
        raise NotObviousError
    return found
