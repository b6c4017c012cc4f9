"""Sizes of the indices into lookup tables that Core ML has.

Source: `constexpr_lut_to_dense` in coremltools.converters.mil.mil.ops.defs, of iOS16 (the size of `lut`) and of iOS18
(the type of `indices`).
"""

from collections.abc import Mapping
from types import MappingProxyType

import coremltools as ct

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
"""Bits of an index, ascending -> the first deployment target that has them."""


def stored_bits(entries: int) -> int:
    """Bits of the smallest index that reaches every entry of a table; the table is filled up to what it can reach.

    Raises:
        ValueError: No index does: a table has more than 256 entries, which torchao has no operator for either.
    """
    for bits in INDEX_BITS:
        if 2**bits >= entries:
            return bits
    raise ValueError(f"a lookup table of {entries} entries: Core ML has at most {2 ** max(INDEX_BITS)}")
