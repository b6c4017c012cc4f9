"""The largest value that a size of a program can have."""

from typing import Any

import torch


def largest_size(size: Any) -> int | None:
    """Returns the size itself, or for a dynamic one its upper bound from the export; None where it has no bound."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    bound = size.node.shape_env.bound_sympy(size.node.expr).upper
    return int(bound) if bound.is_Integer and bound < 2**31 else None
