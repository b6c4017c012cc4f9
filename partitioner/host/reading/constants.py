"""Types and immediate constants of MIL messages."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from partitioner.host.errors import ProgramFormatError
from partitioner.host.mil.dtypes import BY_CODE, DType
from partitioner.host.mil.model import Constant, ConstantValue
from partitioner.host.mil.types import DictType, ListType, StateType, TensorType, TupleType, ValueType
from partitioner.host.reading.packing import decode

# A size above this cannot be a tensor's; it keeps products of corrupt sizes small enough to print.
_MAX_DIMENSION = 1 << 40
_BYTES_OF_FIELD = {"floats": 4, "doubles": 8, "ints": 4, "longInts": 8, "bools": 1}


def read_type(message: Any, where: str) -> ValueType:
    """Reads a ``ValueType`` message.

    Raises:
        ProgramFormatError: The type is absent, unknown or inconsistent.
    """
    kind = message.WhichOneof("type")
    if kind is None:
        raise ProgramFormatError(f"{where}: no type")
    return _TYPE_READERS[kind](getattr(message, kind), where)


def read_constant(value: Any, where: str) -> Constant:
    """Reads a ``Value`` message whose value is stored in the program itself.

    Raises:
        ProgramFormatError: The value is absent, or disagrees with its declared type.
    """
    if value.WhichOneof("value") != "immediateValue":
        raise ProgramFormatError(f"{where}: a constant without a value")
    declared = read_type(value.type, where)
    immediate = value.immediateValue
    kind = immediate.WhichOneof("value")
    if kind == "tensor" and isinstance(declared, TensorType):
        return _read_tensor(immediate.tensor, declared, where)
    if kind == "list" and isinstance(declared, ListType):
        return _read_sequence(immediate.list.values, declared, where)
    if kind == "tuple":
        return _read_sequence(immediate.tuple.values, declared, where)
    if kind == "dictionary" and isinstance(declared, DictType):
        return _read_dictionary(immediate.dictionary.values, declared, where)
    raise ProgramFormatError(f"{where}: a value of kind {kind} for the type {declared}")


def _read_dimension(message: Any, where: str) -> int | None:
    if message.WhichOneof("dimension") != "constant":
        return None
    size = int(message.constant.size)
    if size > _MAX_DIMENSION:
        raise ProgramFormatError(f"{where}: dimension of size {size}")
    return size


def _read_tensor_type(message: Any, where: str) -> TensorType:
    if message.dataType not in BY_CODE:
        raise ProgramFormatError(f"{where}: unknown data type code {message.dataType}")
    dtype = BY_CODE[message.dataType]
    if any(dimension.unknown.variadic for dimension in message.dimensions):
        return TensorType(dtype, None)
    return TensorType(dtype, tuple(_read_dimension(dimension, where) for dimension in message.dimensions))


def _read_list_type(message: Any, where: str) -> ListType:
    return ListType(read_type(message.type, where), _read_dimension(message.length, where))


def _read_tuple_type(message: Any, where: str) -> TupleType:
    return TupleType(tuple(read_type(element, where) for element in message.types))


def _read_dict_type(message: Any, where: str) -> DictType:
    return DictType(read_type(message.keyType, where), read_type(message.valueType, where))


def _read_state_type(message: Any, where: str) -> StateType:
    wrapped = read_type(message.wrappedType, where)
    if not isinstance(wrapped, TensorType):
        raise ProgramFormatError(f"{where}: a state must wrap a tensor, not {wrapped}")
    return StateType(wrapped)


_TYPE_READERS: dict[str, Callable[[Any, str], ValueType]] = {
    "tensorType": _read_tensor_type,
    "listType": _read_list_type,
    "tupleType": _read_tuple_type,
    "dictionaryType": _read_dict_type,
    "stateType": _read_state_type,
}


def _read_tensor(message: Any, declared: TensorType, where: str) -> Constant:
    shape = declared.fixed_shape()
    if shape is None:
        raise ProgramFormatError(f"{where}: a constant of unknown shape: {declared}")
    field = message.WhichOneof("value")
    if field is None:
        if math.prod(shape):
            raise ProgramFormatError(f"{where}: no elements for {declared}")
        return Constant(declared, lambda: torch.zeros(shape, dtype=declared.dtype.compute), 0)
    values = getattr(message, field).values
    if field == "bytes":
        raw = memoryview(values)
        # Decoding checks the size; do it now for what is small, so that reading finds every mismatch.
        decode(raw, declared.dtype, shape, where)
        return Constant(declared, lambda: decode(raw, declared.dtype, shape, where), len(raw))
    _check_count(len(values), math.prod(shape), declared, where)
    if field == "strings":
        return _string_constant(values, declared, where)
    if declared.dtype.name == "string":
        raise ProgramFormatError(f"{where}: {field} stored for {declared}")
    return Constant(
        declared, lambda: _numbers(values, declared.dtype, shape, where), len(values) * _BYTES_OF_FIELD[field]
    )


def _string_constant(values: Sequence[str], declared: TensorType, where: str) -> Constant:
    if declared.dtype.name != "string":
        raise ProgramFormatError(f"{where}: strings stored for {declared}")
    strings = list(values)
    scalar = declared.shape == ()
    return Constant(declared, lambda: strings[0] if scalar else list[ConstantValue](strings), sum(map(len, strings)))


def _numbers(values: Sequence[float], dtype: DType, shape: tuple[int, ...], where: str) -> torch.Tensor:
    try:
        return torch.tensor(list(values), dtype=dtype.compute).reshape(shape)
    except (RuntimeError, OverflowError) as error:
        raise ProgramFormatError(f"{where}: values out of the range of {dtype.name}: {error}") from None


def _check_count(found: int, expected: int, declared: ValueType, where: str) -> None:
    if found != expected:
        raise ProgramFormatError(f"{where}: {found} elements stored, {expected} declared by {declared}")


def _read_sequence(messages: Sequence[Any], declared: ValueType, where: str) -> Constant:
    items = [read_constant(message, where) for message in messages]
    if isinstance(declared, ListType) and declared.length is not None:
        _check_count(len(items), declared.length, declared, where)
    return Constant(declared, lambda: [item.load() for item in items], sum(item.stored_bytes for item in items))


def _read_dictionary(messages: Sequence[Any], declared: DictType, where: str) -> Constant:
    pairs = [(read_constant(pair.key, where), read_constant(pair.value, where)) for pair in messages]
    size = sum(key.stored_bytes + value.stored_bytes for key, value in pairs)
    return Constant(declared, lambda: {key.load(): value.load() for key, value in pairs}, size)
