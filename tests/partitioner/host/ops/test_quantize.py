import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types
from helpers.mil import convert, run

from partitioner import host
from partitioner.host.reading import weights
from partitioner.host.reading.packing import unpack_bits

NARROW = {1: types.np_uint1_dtype, 2: types.np_uint2_dtype, 3: types.np_uint3_dtype, 4: types.np_uint4_dtype}
NARROW |= {6: types.np_uint6_dtype, 8: np.dtype(np.uint8)}


def _levels(x, scale, zero_point, dtype):
    limits = np.iinfo(dtype)
    return np.clip(np.round(x.astype(np.float64) / scale) + zero_point, limits.min, limits.max).astype(dtype)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantize_rounds_half_to_even_and_clips(dtype):
    zero_point = dtype(3)
    # 0.25 is a power of two: every quotient is exact, ties included.
    x = np.array([-1e9, -40, -0.375, -0.125, 0, 0.125, 0.375, 0.625, 31.3, 1e9], np.float32)

    def build(x):
        levels = mb.quantize(input=x, scale=0.25, zero_point=zero_point, output_dtype=np.dtype(dtype).name)
        return [mb.cast(x=levels, dtype="int32"), mb.dequantize(input=levels, scale=0.25, zero_point=zero_point)]

    levels, values = run(build, {"x": x})
    expected = _levels(x, 0.25, 3, dtype)
    np.testing.assert_array_equal(levels, expected)
    np.testing.assert_array_equal(values, 0.25 * (expected.astype(np.float32) - 3))


def test_quantize_along_an_axis_in_half_precision():
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float16).astype(np.float32)
    scale = np.array([0.5, 0.25, 0.125], np.float32)
    zero_point = np.array([-1, 0, 5], np.int8)

    def build(x):
        levels = mb.quantize(input=x, scale=scale, zero_point=zero_point, axis=1, output_dtype="int8")
        return mb.dequantize(input=levels, scale=scale, zero_point=zero_point, axis=1)

    (values,) = run(build, {"x": x}, half=True, policy="storage16")
    wide_scale, wide_zero = scale[:, None], zero_point[:, None].astype(np.float64)
    expected = (_levels(x, wide_scale, wide_zero, np.int8) - wide_zero) * wide_scale
    np.testing.assert_array_equal(values, expected.astype(np.float32))


@pytest.mark.parametrize("scale", [0.1, np.array([0.1, 0.2, 0.3], np.float32)])
def test_affine_weights_before_ios18(scale):
    data = np.random.default_rng(1).integers(-128, 128, (4, 3, 5)).astype(np.int8)
    zero_point = np.int8(7) if np.ndim(scale) == 0 else np.array([7, 0, -3], np.int8)

    def build(x):
        scales = np.float32(scale) if np.ndim(scale) == 0 else scale
        return mb.add(
            x=x, y=mb.constexpr_affine_dequantize(quantized_data=data, zero_point=zero_point, scale=scales, axis=1)
        )

    (output,) = run(build, {"x": np.zeros((4, 3, 5), np.float32)}, ios=16)
    wide = [np.reshape(value, (-1, 1)) if np.ndim(value) else value for value in (scale, zero_point)]
    exact = (data.astype(np.float64) - wide[1]) * np.asarray(wide[0], np.float32)
    assert np.abs(output - exact).max() <= np.finfo(np.float32).eps * np.abs(exact).max()


@pytest.mark.parametrize("kind", [types.np_int4_dtype, types.np_uint4_dtype, np.dtype(np.int8), np.dtype(np.uint8)])
@pytest.mark.parametrize("blocks", [(1, 1), (6, 1), (1, 4), (3, 2)])
def test_blockwise_weights(kind, blocks):
    generator = np.random.default_rng(2)
    signed = kind in (types.np_int4_dtype, np.dtype(np.int8))
    bits = 4 if kind in (types.np_int4_dtype, types.np_uint4_dtype) else 8
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    data = generator.integers(low, high, (6, 8)).astype(np.int8 if signed else np.uint8)
    offset = generator.integers(low, high, blocks).astype(data.dtype)
    scale = (2.0 ** generator.integers(-4, 0, blocks)).astype(np.float32)

    def build(x):
        weight = mb.constexpr_blockwise_shift_scale(data=data.astype(kind), scale=scale, offset=offset.astype(kind))
        return mb.add(x=x, y=weight)

    (output,) = run(build, {"x": np.zeros((6, 8), np.float32)}, ios=18)
    spread = [np.repeat(np.repeat(value, 6 // blocks[0], 0), 8 // blocks[1], 1) for value in (scale, offset)]
    np.testing.assert_array_equal(output, (data.astype(np.float32) - spread[1]) * spread[0])


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_palettized_weights_before_ios18(bits):
    generator = np.random.default_rng(bits)
    indices = generator.integers(0, 1 << bits, 15).astype(np.uint8)
    lut = generator.standard_normal(1 << bits).astype(np.float32)
    stream = "".join(format(index, f"0{bits}b")[::-1] for index in indices)
    stream += "0" * (-len(stream) % 8)
    packed = np.array([int(stream[at : at + 8][::-1], 2) for at in range(0, len(stream), 8)], np.uint8)

    def build(x):
        return mb.add(x=x, y=mb.constexpr_lut_to_dense(indices=packed, lut=lut, shape=np.array([3, 5], np.uint32)))

    (output,) = run(build, {"x": np.zeros((3, 5), np.float32)}, ios=16)
    np.testing.assert_array_equal(output, lut[indices].reshape(3, 5))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_grouped_palettes(bits):
    generator = np.random.default_rng(bits)
    indices = generator.integers(0, 1 << bits, (6, 4)).astype(np.uint8)
    lut = generator.standard_normal((3, 1, 1 << bits, 1)).astype(np.float32)

    def build(x):
        return mb.add(x=x, y=mb.constexpr_lut_to_dense(indices=indices.astype(NARROW[bits]), lut=lut))

    (output,) = run(build, {"x": np.zeros((6, 4), np.float32)}, ios=18)
    expected = np.stack([lut[row // 2, 0, indices[row], 0] for row in range(6)])
    np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_vector_palettes_spread_along_their_axis(axis):
    generator = np.random.default_rng(axis)
    indices = generator.integers(0, 4, (2, 4)).astype(np.uint8)
    lut = generator.standard_normal((1, 1, 4, 3)).astype(np.float32)
    shape = (6, 4) if axis == 0 else (2, 12)

    def build(x):
        dense = mb.constexpr_lut_to_dense(indices=indices.astype(NARROW[2]), lut=lut, vector_axis=axis)
        return mb.add(x=x, y=dense)

    (output,) = run(build, {"x": np.zeros(shape, np.float32)}, ios=18)
    expected = np.moveaxis(lut[0, 0][indices], 2, axis + 1).reshape(shape)
    np.testing.assert_array_equal(output, expected)


def test_sparse_weights_alone_and_joined_with_a_palette_or_scales():
    generator = np.random.default_rng(5)
    mask = generator.integers(0, 2, (4, 6)).astype(np.uint8)
    count = int(mask.sum())
    values = generator.standard_normal(count).astype(np.float32)
    indices = generator.integers(0, 4, count).astype(np.uint8)
    lut = generator.standard_normal((1, 1, 4, 1)).astype(np.float32)
    levels = generator.integers(-128, 128, count).astype(np.int8)
    scale = np.array([[0.5], [0.25], [1.0], [2.0]], np.float32)
    bit_mask = mask.astype(NARROW[1])

    def build(x):
        plain = mb.constexpr_sparse_to_dense(nonzero_data=values, mask=bit_mask)
        looked_up = mb.constexpr_lut_to_sparse(
            indices_mask=bit_mask, indices_nonzero_data=indices.astype(NARROW[2]), lut=lut
        )
        scaled = mb.constexpr_sparse_blockwise_shift_scale(data_mask=bit_mask, nonzero_data=levels, scale=scale)
        palette = mb.constexpr_sparse_to_dense(nonzero_data=looked_up[1], mask=looked_up[0])
        affine = mb.constexpr_sparse_to_dense(nonzero_data=scaled[1], mask=scaled[0])
        return [mb.add(x=x, y=weight) for weight in (plain, palette, affine)]

    outputs = run(build, {"x": np.zeros((4, 6), np.float32)}, ios=18)
    expected = [np.zeros((4, 6), np.float32) for _ in range(3)]
    expected[0][mask == 1] = values
    expected[1][mask == 1] = lut[0, 0, indices, 0]
    expected[2][mask == 1] = levels
    expected[2] *= scale
    for output, reference in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(output, reference)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("count", [1, 7, 8, 41])
def test_unpacking_agrees_with_the_weight_file_writer(tmp_path, bits, count):
    storage = pytest.importorskip("coremltools.libmilstoragepython")
    values = np.random.default_rng(count).integers(0, 1 << bits, count).astype(np.uint8)
    path = tmp_path / "weight.bin"
    writer = storage._BlobStorageWriter(str(path))
    offset = getattr(writer, f"write_uint{bits}_data")(values)
    del writer
    blob = weights.WeightFile(memoryview(path.read_bytes()), "weight.bin").blob(offset)
    assert blob.dtype.name == f"uint{bits}"
    assert blob.tensor((count,)).tolist() == values.tolist()


def test_unpacking_sign_extends():

    packed = torch.tensor([0x98, 0xBA, 0x10], dtype=torch.uint8)
    assert unpack_bits(packed, 4, 6, signed=True).tolist() == [-8, -7, -6, -5, 0, 1]


def test_constants_are_decoded_once_and_shared():
    data = np.random.default_rng(0).integers(-8, 8, (64, 64)).astype(np.int8)

    def build(x):
        weight = mb.constexpr_blockwise_shift_scale(data=data, scale=np.full((64, 1), 0.5, np.float32))
        return mb.linear(x=x, weight=weight)

    program = host.load(convert(build, {"x": np.zeros((1, 64), np.float32)}, ios=18))
    assert program._plans == {}
    (first,), (second,) = (program.predict({"x": np.ones((1, 64), np.float32)}).values() for _ in range(2))
    steps = program._plans["main", True][0].body.steps
    assert [step.op.type for step in steps] == ["linear"]
    np.testing.assert_array_equal(first, 0.5 * data.sum(1, dtype=np.float32)[None])
    np.testing.assert_array_equal(first, second)
