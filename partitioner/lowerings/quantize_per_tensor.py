"""Quantize and dequantize operations of the PT2E flow (``quantized_decomposed``).

Three differences from the converters of Core ML Tools 9.0:

- Constants are stored in the declared type. Core ML Tools narrows an int8 tensor to int4 for iOS18 if its values happen
  to fit, and fails if the zero point does not fit. For iOS16 it fails when it casts the zero point.
- A constant of any other integer type (an int32 bias) becomes a float constant.
- Core ML quantizes to the full range of int8 or uint8. For a narrower ``quant_min``/``quant_max``, the input is clamped
  to the values that this range can represent, with a scale per channel too.
"""

from typing import Any

import numpy as np
from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil import types

from partitioner.lowerings.registry import set_converter
from partitioner.lowerings.storage import Array, affine_constant, storage_type

_EIGHT_BIT = (np.dtype(np.int8), np.dtype(np.uint8))


@set_converter("quantized_decomposed.quantize_per_tensor", "quantized_decomposed::quantize_per_tensor")
def _quantize_per_tensor(context: Any, node: Any) -> None:
    x, scale, zero_point, minimum, maximum, _ = _get_inputs(context, node, expected=6)
    dtype = _declared_dtype(node)
    if _is_narrow(minimum, maximum, dtype):
        low, high = ((bound.val - zero_point.val) * scale.val for bound in (minimum, maximum))
        x = mb.clip(x=x, alpha=np.float32(low), beta=np.float32(high))
    context.add(_quantized(x, scale.val, zero_point.val, dtype, None, node.name), node.name)


@set_converter("quantized_decomposed.quantize_per_channel", "quantized_decomposed::quantize_per_channel")
def _quantize_per_channel(context: Any, node: Any) -> None:
    x, scale, zero_point, axis, minimum, maximum, _ = _get_inputs(context, node, expected=7)
    dtype = _declared_dtype(node)
    if _is_narrow(minimum, maximum, dtype):
        x = _clamped(x, np.asarray(scale.val), np.asarray(zero_point.val), int(axis.val), (minimum.val, maximum.val))
    context.add(_quantized(x, scale.val, zero_point.val, dtype, axis.val, node.name), node.name)


def _is_narrow(minimum: Any, maximum: Any, dtype: np.dtype[Any]) -> bool:
    """Returns whether a range leaves out integers of the type."""
    full = np.iinfo(dtype)
    return bool(minimum.val > full.min or maximum.val < full.max)


def _clamped(x: Any, scale: Array, zero_point: Array, axis: int, bounds: tuple[int, int]) -> Any:
    """Clamps every channel to the values that its range can represent."""
    shape = [-1 if index == axis % x.rank else 1 for index in range(x.rank)]
    low, high = (
        ((bound - zero_point.astype(np.float32)) * scale.astype(np.float32)).astype(np.float32).reshape(shape)
        for bound in bounds
    )
    return mb.minimum(x=mb.maximum(x=x, y=low), y=high)


def _declared_dtype(node: Any) -> np.dtype[Any]:
    example = node.meta["val"]
    return np.dtype(str(example.dtype).removeprefix("torch."))


def _quantized(x: Any, scale: Any, zero_point: Any, dtype: np.dtype[Any], axis: int | None, name: str) -> Any:
    parameters = _parameters(np.asarray(scale, np.float32), np.asarray(zero_point), dtype, axis)
    return mb.quantize(input=x, output_dtype=dtype.name, name=name, **parameters)


def _parameters(scale: Array, zero_point: Array, dtype: Any, axis: int | None) -> dict[str, Any]:
    """Returns the arguments of the MIL operations.

    A zero point of zero is left out. Without an axis, the scale and the zero point are scalars.
    """
    offset = zero_point.astype(dtype) if np.any(zero_point) else None
    if axis is None:
        return {"scale": scale.reshape(-1)[0], "zero_point": None if offset is None else offset.reshape(-1)[0]}
    return {"scale": scale, "zero_point": offset, "axis": np.int32(axis)}


@set_converter(
    "quantized_decomposed.dequantize_per_tensor",
    "quantized_decomposed::dequantize_per_tensor",
    "quantized_decomposed.dequantize_per_channel",
    "quantized_decomposed::dequantize_per_channel",
)
def _dequantize(context: Any, node: Any) -> None:
    x, scale, zero_point, *axis, minimum, maximum, _ = _get_inputs(context, node, expected=[6, 7])
    scales = np.asarray(scale.val, np.float32)
    offsets = np.zeros_like(scales, np.int32) if zero_point is None else np.asarray(zero_point.val)
    channel = int(axis[0].val) if axis else None
    if x.val is None:
        context.add(_dequantized(x, scales, offsets, channel, node.name), node.name)
        return
    data = np.asarray(x.val)
    if data.dtype not in _EIGHT_BIT or data.ndim == 0:
        shape = [-1 if index == channel else 1 for index in range(data.ndim)] if scales.size > 1 else ()
        values = (data.astype(np.float32) - offsets.reshape(shape)) * scales.reshape(shape)
        context.add(mb.const(val=values.astype(np.float32), name=node.name), node.name)
        return
    stored = storage_type(int(minimum.val), int(maximum.val), signed=data.dtype == np.int8)
    shape = [-1 if index == channel and scales.size > 1 else 1 for index in range(data.ndim)]
    context.add(
        affine_constant(data.astype(stored), scales.reshape(shape), offsets.reshape(shape), node.name), node.name
    )


def _dequantized(x: Any, scale: Array, zero_point: Array, axis: int | None, name: str) -> Any:
    parameters = _parameters(scale, zero_point, types.nptype_from_builtin(x.dtype), axis)
    if x.rank > 0:
        return mb.dequantize(input=x, name=name, **parameters)
    # The MIL operation takes tensors only, and torch also dequantizes scalars.
    widened = mb.expand_dims(x=x, axes=(0,))
    return mb.squeeze(x=mb.dequantize(input=widened, **parameters), name=name)
