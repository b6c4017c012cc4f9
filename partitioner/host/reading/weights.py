"""A reader of the weight file of an ML Program ("MIL blob storage", version 2).

The file starts with a 64-byte header (number of blobs, version). A program refers to a blob by the offset of its
64-byte record: sentinel, data type, size in bytes, offset of the data, and the unused bits at the end of the last byte
for types narrower than a byte. Source: ``mlmodel/src/MILBlob/Blob/StorageFormat.hpp`` of Core ML Tools.
"""

import struct
from dataclasses import dataclass
from functools import cached_property

import torch

from partitioner.host.errors import ProgramFormatError
from partitioner.host.mil.dtypes import BY_BLOB_CODE, DType, packed_bytes
from partitioner.host.reading.packing import decode

_HEADER = struct.Struct("<II")
_RECORD = struct.Struct("<IIQQQ")
_HEADER_BYTES = _RECORD_BYTES = 64
_VERSION = 2
_SENTINEL = 0xDEADBEEF


@dataclass(frozen=True)
class WeightBlob:
    """One blob: the position of its bytes, and their data type."""

    dtype: DType
    raw: memoryview
    where: str

    def tensor(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Returns the elements as a tensor of ``shape``; shares memory with the file when no conversion is needed."""
        return decode(self.raw, self.dtype, shape, self.where)


class WeightFile:
    """A weight file over a buffer; blobs are views, nothing is copied.

    Args:
        data: The whole file.
        name: Path of the file inside its package, for messages.

    Raises:
        ProgramFormatError: The header is short or of an unknown version.
    """

    def __init__(self, data: memoryview, name: str) -> None:
        self._data = data.cast("B")
        self.name = name
        if len(self._data) < _HEADER_BYTES:
            raise ProgramFormatError(f"{name}: {len(self._data)} bytes, shorter than the {_HEADER_BYTES}-byte header")
        if self.version != _VERSION:
            raise ProgramFormatError(f"{name}: weight file version {self.version}; this runtime reads {_VERSION}")

    @cached_property
    def version(self) -> int:
        """Version in the file's header."""
        return int(_HEADER.unpack_from(self._data, 0)[1])

    def blob(self, offset: int) -> WeightBlob:
        """Returns the blob whose record starts at ``offset``.

        Raises:
            ProgramFormatError: No valid record starts there, or its data lies outside the file.
        """
        where = f"{self.name} at offset {offset}"
        if offset < _HEADER_BYTES or offset + _RECORD_BYTES > len(self._data):
            raise ProgramFormatError(f"{where}: outside the file of {len(self._data)} bytes")
        sentinel, code, size, start, padding_bits = _RECORD.unpack_from(self._data, offset)
        if sentinel != _SENTINEL:
            raise ProgramFormatError(f"{where}: no weight record starts here (sentinel {sentinel:#x})")
        if code not in BY_BLOB_CODE:
            raise ProgramFormatError(f"{where}: unknown data type code {code}")
        if start + size > len(self._data):
            raise ProgramFormatError(f"{where}: data ends at byte {start + size} of a {len(self._data)}-byte file")
        if padding_bits > 7:
            raise ProgramFormatError(f"{where}: {padding_bits} padding bits; at most 7 fit in the last byte")
        return WeightBlob(BY_BLOB_CODE[code], self._data[start : start + size], where)

    def checked_blob(self, offset: int, dtype: DType, count: int) -> WeightBlob:
        """Returns a blob as `blob` does, after checking that it holds ``count`` elements of ``dtype``."""
        blob = self.blob(offset)
        # A weight file has no bool: one byte per element stands for it.
        stored = "uint8" if dtype.name == "bool" else dtype.name
        if blob.dtype.name != stored:
            raise ProgramFormatError(f"{blob.where}: holds {blob.dtype.name}, the program declares {dtype.name}")
        if len(blob.raw) != packed_bytes(dtype, count):
            raise ProgramFormatError(
                f"{blob.where}: holds {len(blob.raw)} bytes, but {count} elements of {dtype.name} take "
                f"{packed_bytes(dtype, count)}"
            )
        return blob
