"""ExecuTorch's own kernels: whether it can run an operation that Core ML does not take."""

from functools import cache
from typing import Any

import torch
from executorch.exir.program._program import _default_decomposition_table
from torch._export.utils import _is_cia_op
from torch.fx import Node

from partitioner.graph.nodes import op_name

_LIBRARIES = ("quantized_decomposed", "dim_order_ops")
"""Libraries of operators for which ExecuTorch has kernels."""

_WITHOUT_KERNEL = frozenset(
    {
        torch.ops.aten.avg_pool3d.default,
        torch.ops.aten.col2im.default,
        torch.ops.aten.max_pool3d_with_indices.default,
        torch.ops.aten.sort.default,
    }
)
"""Operations of ATen's core set that are neither among ExecuTorch's portable kernels nor decomposed."""


@cache
def _decomposed() -> frozenset[object]:
    return frozenset(_default_decomposition_table())


def runs_outside(node: Node) -> bool:
    """Returns whether ExecuTorch has a kernel for an operation, or decomposes it into operations with kernels.

    Its portable kernels are those of ATen's core set.
    """
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):  # an edge operation holds the ATen one
        target = getattr(target, "_op", target)
    if not isinstance(target, torch._ops.OpOverload):
        return True
    return target not in _WITHOUT_KERNEL and (
        torch.Tag.core in target.tags
        or target in _decomposed()
        or _is_cia_op(target)
        or str(target).split(".")[1].endswith("_copy")  # of a view, which ExecuTorch replaces by its copy
        or op_name(node).split(".")[0] in _LIBRARIES
    )
