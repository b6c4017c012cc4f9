"""Compressed constants, stored in the smallest Core ML type that holds their declared range.

Core ML Tools narrows integers to 4 bits by their values and ignores the declared range. Here only the declaration
counts.
"""

from typing import Any

import numpy as np
from coremltools.converters.mil._deployment_compatibility import AvailableTarget
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.block import is_current_opset_version_compatible_with
from coremltools.optimize._utils import pack_elements_into_bits
from numpy.typing import NDArray

from partitioner.limits import stored_bits

Array = NDArray[Any]

_INTEGERS = (("int4", -8, 7), ("uint4", 0, 15), ("int8", -128, 127), ("uint8", 0, 255))
"""Types with their lowest and highest integer, from the smallest to the largest. 4-bit types exist from iOS18 on."""


def is_at_least_ios18() -> bool:
    """Returns whether the current conversion may use operations and types that are new in iOS18."""
    return bool(is_current_opset_version_compatible_with(AvailableTarget.iOS18))


def storage_type(minimum: int, maximum: int, *, signed: bool) -> Any:
    """Returns the smallest Core ML type that holds a declared integer range.

    Args:
        minimum: Lowest integer of the range.
        maximum: Highest integer of the range.
        signed: Whether the type is signed. This also decides for a range that fits both kinds.

    Returns:
        A numpy dtype. Core ML Tools defines those for int4 and uint4.

    Raises:
        ValueError: No type holds the range.
    """
    for name, low, high in _INTEGERS:
        if low <= minimum and maximum <= high and signed == (low < 0) and (name[-1] == "8" or is_at_least_ios18()):
            return types.nptype_from_builtin(types.string_to_builtin(name))
    raise ValueError(f"no Core ML type holds the integers {minimum} to {maximum}")


def affine_constant(data: Array, scale: Array, zero_point: Array, name: str) -> Any:
    """Builds the compressed constant ``scale * (data - zero_point)``.

    Args:
        data: Integers in their storage type.
        scale: Scales with as many dimensions as the data. Along each dimension, one scale per block of equal size.
        zero_point: Integers of the scale's shape.
        name: The name of the result.

    Raises:
        ValueError: Below iOS18, the scales differ along several dimensions or per block.
    """
    if is_at_least_ios18():
        offset = zero_point.astype(data.dtype) if np.any(zero_point) else None
        return mb.constexpr_blockwise_shift_scale(data=data, scale=scale, offset=offset, name=name)
    split = [axis for axis, size in enumerate(scale.shape) if size > 1]
    if len(split) > 1 or any(scale.shape[axis] != data.shape[axis] for axis in split):
        raise ValueError(f"scales of shape {scale.shape} for data of shape {data.shape} are blocks, which need iOS18")
    flat, offsets = scale.reshape(-1), zero_point.astype(data.dtype).reshape(-1)
    return mb.constexpr_affine_dequantize(
        quantized_data=data,
        zero_point=offsets if split else offsets[0],
        scale=flat if split else flat[0],
        axis=np.int32(split[0] if split else 0),
        name=name,
    )


def table_constant(indices: Array, tables: Array, name: str) -> Any:
    """Builds a compressed constant whose elements come from lookup tables.

    Args:
        indices: Indices into the tables.
        tables: Tables of shape (number of tables along each dimension of the indices, entries, 1). If no index of Core
            ML has exactly this number of entries, the tables are filled up to the next number.
        name: The name of the result.

    Raises:
        ValueError: Below iOS18, there is more than one table. Or the tables have more than 256 entries.
    """
    entries = tables.shape[-2]
    bits = stored_bits(entries)
    fill = [(0, 0)] * tables.ndim
    fill[-2] = (0, 2**bits - entries)
    tables = np.pad(tables, fill, mode="edge")
    if is_at_least_ios18():
        stored = types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}"))
        return mb.constexpr_lut_to_dense(indices=indices.astype(stored), lut=tables, name=name)
    if tables.size != 2**bits:
        raise ValueError(f"{tables.size // 2**bits} lookup tables for one weight need iOS18")
    return mb.constexpr_lut_to_dense(
        indices=pack_elements_into_bits(indices.astype(np.uint8), bits),
        lut=tables.reshape(-1),
        shape=np.asarray(indices.shape, np.uint32),
        name=name,
    )
