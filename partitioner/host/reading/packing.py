"""Conversion of stored bytes into tensors, for every data type that MIL stores."""

import math

import numpy as np
import torch
import torch.utils.dlpack

from partitioner.host.errors import ProgramFormatError
from partitioner.host.mil.dtypes import DType, packed_bytes

_ALIGNMENT = 16


def decode(raw: memoryview, dtype: DType, shape: tuple[int, ...], what: str) -> torch.Tensor:
    """Reads stored elements into a tensor of the data type's compute type.

    The result shares memory with ``raw`` when no conversion is needed and the bytes are aligned; treat it as constant.

    Args:
        raw: Stored bytes, little endian; elements narrower than a byte are packed from the least significant bit.
        dtype: Stored data type.
        shape: Shape of the result.
        what: Name of the value, for messages.

    Raises:
        ProgramFormatError: ``raw`` does not hold exactly the elements that ``shape`` asks for.
    """
    count = math.prod(shape)
    expected = packed_bytes(dtype, count)
    if len(raw) != expected:
        raise ProgramFormatError(
            f"{what}: {len(raw)} bytes stored, but {dtype.name} of shape {shape} takes {expected} bytes"
        )
    if count == 0:
        return torch.zeros(shape, dtype=dtype.compute)
    # DLPack takes read-only arrays; nothing in the runtime writes to a constant.
    stored = torch.utils.dlpack.from_dlpack(np.frombuffer(raw, np.uint8))
    if dtype.bits < 8:
        return unpack_bits(stored, dtype.bits, count, signed=dtype.name.startswith("int")).reshape(shape)
    if stored.data_ptr() % _ALIGNMENT:
        stored = stored.clone()
    return stored.view(dtype.storage).to(dtype.compute).reshape(shape)


def unpack_bits(packed: torch.Tensor, bits: int, count: int, *, signed: bool = False) -> torch.Tensor:
    """Unpacks integers narrower than a byte.

    Args:
        packed: uint8 tensor; element i occupies bits ``[i * bits, (i + 1) * bits)`` of the little-endian bit stream.
        bits: Width of an element, 1 to 8.
        count: Number of elements.
        signed: Whether elements are in two's complement.

    Returns:
        uint8 (int8 when signed) tensor of shape (count,).
    """
    group = math.lcm(bits, 8) // 8
    padding = -packed.numel() % group
    whole = torch.nn.functional.pad(packed.flatten(), (0, padding)).reshape(-1, group)
    shifts = torch.arange(group * 8 // bits) * bits
    if group == 1:
        values = (whole >> shifts.to(torch.uint8)) & ((1 << bits) - 1)
    else:
        words = (whole.to(torch.int64) << (torch.arange(group) * 8)).sum(1, keepdim=True)
        values = ((words >> shifts) & ((1 << bits) - 1)).to(torch.uint8)
    flat = values.flatten()[:count]
    if not signed:
        return flat.contiguous()
    half = 1 << (bits - 1)
    return (flat ^ half).to(torch.int8) - half
