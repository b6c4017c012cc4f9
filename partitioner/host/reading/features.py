"""The interface of a model: what callers give and get."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from partitioner.host.errors import ProgramFormatError
from partitioner.host.mil.dtypes import BY_NAME, DType
from partitioner.host.mil.model import Feature
from partitioner.host.mil.types import StateType, TensorType, ValueType

# `ArrayFeatureType.ArrayDataType` and `ImageFeatureType.ColorSpace` in FeatureTypes.proto.
_ARRAY_DTYPES = {65568: "fp32", 65600: "fp64", 131104: "int32", 131080: "int8", 65552: "fp16"}
_COLOR_SPACES = {10: "GRAYSCALE", 20: "RGB", 30: "BGR", 40: "GRAYSCALE_FLOAT16"}
_CHANNELS = {"GRAYSCALE": 1, "GRAYSCALE_FLOAT16": 1, "RGB": 3, "BGR": 3}
_SIMPLE_KINDS = {
    "int64Type": "int64",
    "doubleType": "double",
    "stringType": "string",
    "dictionaryType": "dictionary",
    "sequenceType": "sequence",
}


def read_features(messages: Iterable[Any], where: str, types: Mapping[str, ValueType]) -> tuple[Feature, ...]:
    """Reads ``FeatureDescription`` messages. Converters describe an output once for each time the model returns it.

    Args:
        messages: The messages, in the description's order.
        where: What they describe, for messages.
        types: Types of the program's values by name.

    Raises:
        ProgramFormatError: A feature is unknown to the program, of an unknown kind or data type, or described twice
            and differently.
    """
    features: dict[str, Feature] = {}
    for message in messages:
        if message.name not in types:
            raise ProgramFormatError(f"{where}: {message.name!r} is described but not in the program")
        feature = _read_feature(message, where, types[message.name])
        if features.setdefault(message.name, feature) != feature:
            raise ProgramFormatError(f"{where}: {message.name!r} is described twice, and differently")
    return tuple(features.values())


def _read_feature(message: Any, where: str, declared: ValueType) -> Feature:
    kind = message.type.WhichOneof("Type")
    place = f"{where}: {message.name!r}"
    if kind in _SIMPLE_KINDS:
        return Feature(message.name, _SIMPLE_KINDS[kind], None, None, optional=message.type.isOptional)
    if kind not in _ARRAY_READERS:
        raise ProgramFormatError(f"{place}: unknown kind {kind}")
    return _ARRAY_READERS[kind](message, place, declared)


def _read_array(message: Any, place: str, declared: ValueType) -> Feature:
    array = message.type.multiArrayType
    shape = declared.shape if isinstance(declared, TensorType) else None
    fixed = declared.fixed_shape() if isinstance(declared, TensorType) else None
    enumerated = tuple(tuple(int(size) for size in entry.shape) for entry in array.enumeratedShapes.shapes)
    ranges = tuple(_range(size) for size in array.shapeRange.sizeRanges)
    default = array.WhichOneof("defaultOptionalValue")
    return Feature(
        message.name,
        "tensor",
        _array_dtype(array.dataType, place),
        shape,
        default_shape=tuple(int(size) for size in array.shape) or None if fixed is None else fixed,
        shapes=enumerated,
        ranges=ranges,
        optional=message.type.isOptional,
        default=float(getattr(array, default)) if default else 0.0,
    )


def _read_image(message: Any, place: str, declared: ValueType) -> Feature:
    image = message.type.imageType
    if image.colorSpace not in _COLOR_SPACES:
        raise ProgramFormatError(f"{place}: unknown color space {image.colorSpace}")
    if not isinstance(declared, TensorType):
        raise ProgramFormatError(f"{place}: an image needs a tensor, the program has {declared}")
    color = _COLOR_SPACES[image.colorSpace]
    lead = (1, _CHANNELS[color])
    flexible = image.imageSizeRange
    ranged = image.WhichOneof("SizeFlexibility") == "imageSizeRange"
    ranges = (*((size, size) for size in lead), _range(flexible.heightRange), _range(flexible.widthRange))
    return Feature(
        message.name,
        "image",
        declared.dtype,
        declared.shape,
        default_shape=declared.fixed_shape() or (*lead, int(image.height), int(image.width)),
        shapes=tuple((*lead, int(size.height), int(size.width)) for size in image.enumeratedSizes.sizes),
        ranges=ranges if ranged else (),
        optional=message.type.isOptional,
        color=color,
    )


def _read_state(message: Any, place: str, declared: ValueType) -> Feature:
    if not isinstance(declared, StateType):
        raise ProgramFormatError(f"{place}: described as a state, the program has {declared}")
    wrapped = declared.wrapped
    return Feature(message.name, "state", wrapped.dtype, wrapped.shape, default_shape=wrapped.fixed_shape())


_ARRAY_READERS: dict[str | None, Callable[[Any, str, ValueType], Feature]] = {
    "multiArrayType": _read_array,
    "imageType": _read_image,
    "stateType": _read_state,
}


def _range(message: Any) -> tuple[int, int | None]:
    return int(message.lowerBound), None if message.upperBound < 0 else int(message.upperBound)


def _array_dtype(code: int, place: str) -> DType:
    if code not in _ARRAY_DTYPES:
        raise ProgramFormatError(f"{place}: unknown array data type {code}")
    return BY_NAME[_ARRAY_DTYPES[code]]
