"""Quantize and dequantize of the PT2E flow (``quantized_decomposed``).

Three differences from the converters of Core ML Tools 9.0:

- Constants are stored in the declared type: there, iOS18 narrows an int8 tensor to int4 whenever its values happen to
  fit, and fails when the zero point does not; and iOS16 fails on casting the zero point.
- A constant of any other integer type (an int32 bias) becomes a float constant.
- Core ML quantizes to the full range of int8 or uint8. A narrower ``quant_min``/``quant_max`` is kept by clamping the
  input to the values that the range can represent.
"""

from typing import Any

import numpy as np
from coremltools.converters.mil._deployment_compatibility import AvailableTarget
from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.block import is_current_opset_version_compatible_with
from numpy.typing import NDArray

from partitioner.lowerings.registry import set_converter

Array = NDArray[Any]

_EIGHT_BIT = (np.dtype(np.int8), np.dtype(np.uint8))


def storage_type(dtype: np.dtype[Any], minimum: int, maximum: int) -> Any:
    """The smallest Core ML type that holds a declared integer range.

    Args:
        dtype: The tensor's dtype, int8 or uint8.
        minimum: Lowest integer of the range.
        maximum: Highest integer of the range.

    Returns:
        A numpy dtype; int4 and uint4 are Core ML Tools' own and exist from iOS18.
    """
    if is_current_opset_version_compatible_with(AvailableTarget.iOS18):
        for name, low, high in (("int4", -8, 7), ("uint4", 0, 15)):
            if low <= minimum and maximum <= high and (dtype == np.int8) == (low < 0):
                return types.nptype_from_builtin(types.string_to_builtin(name))
    return dtype


def constant_dequantize(data: Array, scale: Array, zero_point: Array, axis: int | None, name: str) -> Any:
    """Builds the compressed constant ``scale * (data - zero_point)``.

    Args:
        data: Integers in their storage type.
        scale: One scale, or one for each index along `axis`.
        zero_point: As many integers as there are scales.
        axis: The channel axis, or None for one scale.
        name: The name of the result.
    """
    if not is_current_opset_version_compatible_with(AvailableTarget.iOS18):
        offsets = zero_point.astype(data.dtype).reshape(-1)
        return mb.constexpr_affine_dequantize(
            quantized_data=data,
            zero_point=offsets[0] if scale.size == 1 else offsets,
            scale=scale.reshape(-1)[0] if scale.size == 1 else scale.reshape(-1),
            axis=np.int32(0 if axis is None else axis),
            name=name,
        )
    shape = [1] * data.ndim
    if axis is not None and scale.size > 1:
        shape[axis] = scale.size
    offset = zero_point.reshape(shape).astype(data.dtype) if np.any(zero_point) else None
    return mb.constexpr_blockwise_shift_scale(data=data, scale=scale.reshape(shape), offset=offset, name=name)


@set_converter("quantized_decomposed.quantize_per_tensor", "quantized_decomposed::quantize_per_tensor")
def _quantize_per_tensor(context: Any, node: Any) -> None:
    x, scale, zero_point, minimum, maximum, _ = _get_inputs(context, node, expected=6)
    dtype = _declared_dtype(node)
    full = np.iinfo(dtype)
    if minimum.val > full.min or maximum.val < full.max:
        low, high = ((bound.val - zero_point.val) * scale.val for bound in (minimum, maximum))
        x = mb.clip(x=x, alpha=np.float32(low), beta=np.float32(high))
    context.add(_quantized(x, scale.val, zero_point.val, dtype, None, node.name), node.name)


@set_converter("quantized_decomposed.quantize_per_channel", "quantized_decomposed::quantize_per_channel")
def _quantize_per_channel(context: Any, node: Any) -> None:
    x, scale, zero_point, axis, _, _, _ = _get_inputs(context, node, expected=7)
    dtype = _declared_dtype(node)
    context.add(_quantized(x, scale.val, zero_point.val, dtype, axis.val, node.name), node.name)


def _declared_dtype(node: Any) -> np.dtype[Any]:
    example = node.meta["val"]
    return np.dtype(str(example.dtype).removeprefix("torch."))


def _quantized(x: Any, scale: Any, zero_point: Any, dtype: np.dtype[Any], axis: int | None, name: str) -> Any:
    parameters = _parameters(np.asarray(scale, np.float32), np.asarray(zero_point), dtype, axis)
    return mb.quantize(input=x, output_dtype=dtype.name, name=name, **parameters)


def _parameters(scale: Array, zero_point: Array, dtype: Any, axis: int | None) -> dict[str, Any]:
    """Arguments of the MIL operations; a zero point of zero is left out, and without an axis both are scalars."""
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
    stored = data.astype(storage_type(data.dtype, int(minimum.val), int(maximum.val)))
    context.add(constant_dequantize(stored, scales, offsets, channel, node.name), node.name)


def _dequantized(x: Any, scale: Array, zero_point: Array, axis: int | None, name: str) -> Any:
    parameters = _parameters(scale, zero_point, types.nptype_from_builtin(x.dtype), axis)
    if x.rank > 0:
        return mb.dequantize(input=x, name=name, **parameters)
    # The MIL operation takes tensors only, and torch also dequantizes scalars.
    widened = mb.expand_dims(x=x, axes=(0,))
    return mb.squeeze(x=mb.dequantize(input=widened, **parameters), name=name)
