"""One name for each operator that has several names in PyTorch, so that every table needs it only once.

For example, `torch.concat` is `torch.cat`, but an exported graph has a separate operator for it.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten

_SAME = (
    (aten.concat, aten.cat),
    (aten.concatenate, aten.cat),
    (aten.row_stack, aten.vstack),
    (aten.multiply, aten.mul),
    (aten.multiply_, aten.mul_),
    (aten.subtract, aten.sub),
    (aten.subtract_, aten.sub_),
    (aten.divide, aten.div),
    (aten.divide_, aten.div_),
    (aten.true_divide, aten.div),
    (aten.true_divide_, aten.div_),
    (aten.negative, aten.neg),
    (aten.absolute, aten.abs),
    (aten.clip, aten.clamp),
    (aten.clip_, aten.clamp_),
    (aten.special_expit, aten.sigmoid),
    (aten.linalg_matmul, aten.matmul),
    (aten.unsafe_split, aten.split),
    (aten.unsafe_split_with_sizes, aten.split_with_sizes),
    (aten.unsafe_chunk, aten.chunk),
    (aten.adjoint, aten.mT),
    (aten.mH, aten.mT),
    (aten.matrix_H, aten.mT),
    (aten.greater, aten.gt),
    (aten.greater_equal, aten.ge),
    (aten.less, aten.lt),
    (aten.less_equal, aten.le),
    (aten.not_equal, aten.ne),
    (aten.special_log1p, aten.log1p),
    (aten.special_expm1, aten.expm1),
    (aten.special_exp2, aten.exp2),
    (aten.special_erf, aten.erf),
    (aten.fix, aten.trunc),
)
"""Pairs (alias, operator) that compute the same for real numbers."""

_RENAMED = {
    aten.special_softmax.default: aten.softmax.int,
    aten.special_log_softmax.default: aten.log_softmax.int,
}


def _overloads() -> Iterator[tuple[torch._ops.OpOverload, torch._ops.OpOverload]]:
    yield from _RENAMED.items()
    for alias, operator in _SAME:
        for name in _names(alias) & _names(operator):
            yield getattr(alias, name), getattr(operator, name)


def _names(packet: torch._ops.OpOverloadPacket) -> set[str]:
    return set(packet.overloads())  # type: ignore[no-untyped-call]


ALIASES: Mapping[torch._ops.OpOverload, torch._ops.OpOverload] = MappingProxyType(dict(_overloads()))
"""Overload of an alias -> the overload of its operator, which takes the same arguments."""


def _is_complex(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_complex()


def resolve_aliases(graph_module: GraphModule) -> None:
    """Replaces each alias by the operator that the rules know, in place."""
    renamed = [node for node in graph_module.graph.nodes if node.target in ALIASES and not _is_complex(node)]
    for node in renamed:
        node.target = ALIASES[node.target]
    if renamed:
        graph_module.recompile()
