"""Limits of Core ML: ranks, dtypes, and sizes of lookup tables."""

from collections.abc import Mapping
from types import MappingProxyType

import coremltools as ct
import torch

HIGHEST_RANK = 5
"""The highest number of dimensions of a tensor."""

BOUNDARY_DTYPES = frozenset(
    {torch.bool, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64}
)
"""Dtypes of the tensors that a model takes and returns."""

INNER_DTYPES = BOUNDARY_DTYPES | {torch.int8, torch.uint8}
"""Dtypes of the tensors inside a model."""

LARGEST_HALF = 65504.0
"""The largest finite number of float16."""

SMALLEST_HALF = 2.0**-24
"""The smallest positive number of float16, a subnormal one."""

INDEX_BITS: Mapping[int, ct.target] = MappingProxyType(
    {
        1: ct.target.iOS16,
        2: ct.target.iOS16,
        3: ct.target.iOS18,
        4: ct.target.iOS16,
        6: ct.target.iOS16,
        8: ct.target.iOS16,
    }
)
"""Bits of an index into a lookup table, ascending -> the first deployment target that has such an index.

Source: `constexpr_lut_to_dense` in coremltools.converters.mil.mil.ops.defs, of iOS16 (the size of `lut`) and of iOS18
(the type of `indices`).
"""


def stored_bits(entries: int) -> int:
    """Returns the bits of the smallest index that reaches every entry of a table.

    The table is filled up to the number of entries that this index can reach.

    Raises:
        ValueError: The table has more than 256 entries, which no index reaches. torchao has no operator for it either.
    """
    for bits in INDEX_BITS:
        if 2**bits >= entries:
            return bits
    raise ValueError(f"a lookup table of {entries} entries: Core ML has at most {2 ** max(INDEX_BITS)}")
