"""Data types of MIL values: names, protobuf and weight-file codes, storage and compute types in torch."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DType:
    """One MIL data type.

    Attributes:
        name: The name that MIL gives it, for example ``"fp16"``.
        code: Its number in the enumeration ``DataType`` of ``MIL.proto``.
        blob_code: Its number in a weight file, or None when weight files cannot hold it.
        bits: Stored bits of one element.
        storage: torch type whose bytes are the stored bytes; uint8 for types narrower than a byte.
        compute: torch type in which a running program holds values of this type. Half precision is held in float32
            (a precision policy rounds it); unsigned integers that torch computes with poorly are held in a wider type.
    """

    name: str
    code: int
    blob_code: int | None
    bits: int
    storage: torch.dtype
    compute: torch.dtype

    @property
    def is_float(self) -> bool:
        """Whether values are floating-point numbers."""
        return self.compute.is_floating_point

    def __repr__(self) -> str:
        return self.name


_TABLE: tuple[DType, ...] = (
    DType("bool", 1, None, 8, torch.uint8, torch.bool),
    DType("string", 2, None, 8, torch.uint8, torch.uint8),
    DType("fp16", 10, 1, 16, torch.float16, torch.float32),
    DType("fp32", 11, 2, 32, torch.float32, torch.float32),
    DType("fp64", 12, None, 64, torch.float64, torch.float64),
    DType("bf16", 13, 5, 16, torch.bfloat16, torch.float32),
    DType("int8", 21, 4, 8, torch.int8, torch.int8),
    DType("int16", 22, 6, 16, torch.int16, torch.int16),
    DType("int32", 23, 14, 32, torch.int32, torch.int32),
    DType("int64", 24, None, 64, torch.int64, torch.int64),
    DType("int4", 25, 8, 4, torch.uint8, torch.int8),
    DType("uint8", 31, 3, 8, torch.uint8, torch.uint8),
    DType("uint16", 32, 7, 16, torch.uint16, torch.int32),
    DType("uint32", 33, 15, 32, torch.uint32, torch.int64),
    DType("uint64", 34, None, 64, torch.int64, torch.int64),
    DType("uint4", 35, 11, 4, torch.uint8, torch.uint8),
    DType("uint2", 36, 10, 2, torch.uint8, torch.uint8),
    DType("uint1", 37, 9, 1, torch.uint8, torch.uint8),
    DType("uint6", 38, 13, 6, torch.uint8, torch.uint8),
    DType("uint3", 39, 12, 3, torch.uint8, torch.uint8),
    DType("fp8e4m3fn", 40, 16, 8, torch.float8_e4m3fn, torch.float32),
    DType("fp8e5m2", 41, 17, 8, torch.float8_e5m2, torch.float32),
)
"""Numbers: `DataType` in MIL.proto and `BlobDataType` of Core ML's weight file, both fixed for binary compatibility."""

BY_NAME: dict[str, DType] = {dtype.name: dtype for dtype in _TABLE}
BY_CODE: dict[int, DType] = {dtype.code: dtype for dtype in _TABLE}
BY_BLOB_CODE: dict[int, DType] = {dtype.blob_code: dtype for dtype in _TABLE if dtype.blob_code is not None}

FP16 = BY_NAME["fp16"]
FP32 = BY_NAME["fp32"]
BOOL = BY_NAME["bool"]
INT32 = BY_NAME["int32"]
STRING = BY_NAME["string"]


def packed_bytes(dtype: DType, count: int) -> int:
    """Returns the bytes that ``count`` elements occupy when stored without gaps."""
    return (count * dtype.bits + 7) // 8
