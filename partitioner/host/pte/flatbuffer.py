"""A reader of flatbuffer tables in bytes that may be corrupt.

Every offset is checked before it is followed, so that damaged data ends in `ProgramFormatError` and never in a wrong
read. The layout is the one of the FlatBuffers internals page: a table starts with the signed distance back to its
vtable, a vtable lists its own size, the table's size and one 16-bit offset a field.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from partitioner.host.errors import ProgramFormatError
from partitioner.host.pte.schema import TABLES, Bytes, Field, Ref, Scalar, Text, Union, Vector


@dataclass(frozen=True)
class Table:
    """One table: `kind` is its name in the schema, `fields` maps field names to values."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


def read_root(data: memoryview, kind: str) -> Table:
    """Reads the root table of a flatbuffer.

    Args:
        data: The flatbuffer, starting with the offset of its root table.
        kind: Name of the root table in the schema.

    Returns:
        The whole tree of tables; byte vectors are views into ``data``.

    Raises:
        ProgramFormatError: An offset leaves the data, a string is not UTF-8, or tables refer to each other so often
            that reading them would not end soon.
    """
    reader = _Reader(data)
    return reader.table(reader.follow(0), kind)


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self._data = data
        # A writer stores each table once; data that makes us read far more than is there is crafted or corrupt.
        self._budget = 8 * len(data) + 1024
        self._readers: dict[type[Field], Callable[[int, Any], Any]] = {
            Text: self._text,
            Bytes: self._bytes,
            Ref: self._ref,
            Vector: self._vector,
        }

    def follow(self, position: int) -> int:
        target = position + self._number("I", position)
        self._need(target, 4)
        return target

    def table(self, position: int, kind: str) -> Table:
        vtable = position - self._number("i", position)
        vtable_size, table_size = self._number("H", vtable), self._number("H", vtable + 2)
        if vtable_size < 4 or vtable_size % 2 or table_size < 4:
            raise ProgramFormatError(f"the {kind} table at byte {position} has an invalid vtable")
        self._need(vtable, vtable_size)
        self._need(position, table_size)
        self._spend(table_size)
        offsets = struct.unpack_from(f"<{vtable_size // 2}H", self._data, vtable)[2:]
        fields: dict[str, Any] = {}
        slot = 0
        for name, description in TABLES[kind]:
            width = 2 if isinstance(description, Union) else 1
            places = [
                position + offsets[k] if k < len(offsets) and offsets[k] else 0 for k in range(slot, slot + width)
            ]
            if any(place >= position + table_size for place in places):
                raise ProgramFormatError(f"field {name} of the {kind} table at byte {position} lies outside its table")
            if getattr(description, "required", False) and not places[-1]:
                raise ProgramFormatError(f"the {kind} table at byte {position} lacks its {name}")
            fields[name] = self._field(description, places)
            slot += width
        return Table(kind, fields)

    def _field(self, description: Field, places: list[int]) -> Any:
        place = places[-1]
        if isinstance(description, Scalar):
            return self._number(description.code, place) if place else description.default
        if isinstance(description, Union):
            return self._union(description, *places)
        if not place:
            return (
                [] if isinstance(description, Vector) else memoryview(b"") if isinstance(description, Bytes) else None
            )
        return self._readers[type(description)](place, description)

    def _union(self, description: Union, type_place: int, place: int) -> Table | None:
        stored = self._number("B", type_place) if type_place else 0
        if stored == 0:
            return None
        if stored > len(description.members) or not place:
            raise ProgramFormatError(f"a union has type {stored} and should have one of {description.members}")
        return self.table(self.follow(place), description.members[stored - 1])

    def _ref(self, place: int, description: Ref) -> Table:
        return self.table(self.follow(place), description.table)

    def _text(self, place: int, description: Text) -> str:
        start, count = self._span(place, 1)
        try:
            return str(self._data[start : start + count], "utf-8")
        except UnicodeDecodeError as error:
            raise ProgramFormatError(f"the string at byte {start} is not UTF-8: {error.reason}") from None

    def _bytes(self, place: int, description: Bytes) -> memoryview:
        start, count = self._span(place, 1)
        return self._data[start : start + count]

    def _vector(self, place: int, description: Vector) -> list[Any]:
        item = description.item
        if isinstance(item, Ref):
            start, count = self._span(place, 4)
            return [self.table(self.follow(start + 4 * k), item.table) for k in range(count)]
        start, count = self._span(place, struct.calcsize(item.code))
        return list(struct.unpack_from(f"<{count}{item.code}", self._data, start))

    def _span(self, place: int, item_size: int) -> tuple[int, int]:
        """Returns where the items of a vector start and how many there are."""
        vector = self.follow(place)
        count = self._number("I", vector)
        self._need(vector + 4, count * item_size)
        self._spend(4 + count * item_size)
        return vector + 4, count

    def _number(self, code: str, position: int) -> Any:
        self._need(position, struct.calcsize(code))
        return struct.unpack_from("<" + code, self._data, position)[0]

    def _need(self, position: int, size: int) -> None:
        if position < 0 or position + size > len(self._data):
            raise ProgramFormatError(
                f"an offset points at bytes {position} to {position + size}, but only {len(self._data)} bytes are there"
            )

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise ProgramFormatError("its tables refer to each other in a way that no writer produces")
