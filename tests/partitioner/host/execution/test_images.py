import coremltools as ct
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coremltools.converters.mil.mil import Builder as mb
from helpers.mil import run

from partitioner import host

X = np.random.default_rng(0).standard_normal((1, 2, 5, 6)).astype(np.float32)
T = torch.from_numpy(X)
ROUNDING = 16 * np.finfo(np.float32).eps * np.abs(X).max()

# Grids for two pixels and five or six samples, as Core ML Tools documents them for `resize_bilinear`.
DOCUMENTED = {
    ("UNALIGN_CORNERS", 5): [0.0, 0.1, 0.5, 0.9, 1.0],
    ("STRICT_ALIGN_CORNERS", 5): [0.0, 0.25, 0.5, 0.75, 1.0],
    ("ALIGN_CORNERS", 5): [0.0, 0.25, 0.5, 0.75, 1.0],
    ("DEFAULT", 5): [0.0, 0.4, 0.8, 1.0, 1.0],
    ("OFFSET_CORNERS", 5): [0.1, 0.3, 0.5, 0.7, 0.9],
    ("UNALIGN_CORNERS", 6): [0.0, 0.0, 1 / 3, 2 / 3, 1.0, 1.0],
    ("STRICT_ALIGN_CORNERS", 6): [0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
    ("DEFAULT", 6): [0.0, 1 / 3, 2 / 3, 1.0, 1.0, 1.0],
    ("OFFSET_CORNERS", 6): [1 / 12, 3 / 12, 5 / 12, 7 / 12, 9 / 12, 11 / 12],
}


@pytest.mark.parametrize(("mode", "count"), DOCUMENTED)
def test_bilinear_sampling_grids_are_the_documented_ones(mode, count):
    ramp = np.array([0.0, 1.0], np.float32).reshape(1, 1, 1, 2)
    sizes = {"target_size_height": 1, "target_size_width": count, "sampling_mode": mode}
    (output,) = run(lambda x: mb.resize_bilinear(x=x, **sizes), {"x": ramp}, ios=16)
    np.testing.assert_allclose(output[0, 0, 0], DOCUMENTED[mode, count], rtol=0, atol=4 * np.finfo(np.float32).eps)


def test_upsampling():
    def build(x):
        scales = {"scale_factor_height": 2, "scale_factor_width": 3}
        return [
            mb.upsample_nearest_neighbor(x=x, **scales),
            mb.resize_nearest_neighbor(x=x, target_size_height=7, target_size_width=4),
            mb.upsample_bilinear(x=x, **scales, align_corners=True),
            mb.upsample_bilinear(x=x, **scales, align_corners=False),
            mb.resize(x=x, shape=[1, 2, 9, 7], resized_dims=np.uint32(2), sampling_mode="UNALIGN_CORNERS"),
            mb.crop(x=x, crop_height=[1, 0], crop_width=[2, 1]),
        ]

    expected = [
        F.interpolate(T, (10, 18), mode="nearest"),
        F.interpolate(T, (7, 4), mode="nearest"),
        F.interpolate(T.double(), (10, 18), mode="bilinear", align_corners=True),
        F.interpolate(T.double(), (10, 18), mode="bilinear", align_corners=False),
        F.interpolate(T.double(), (9, 7), mode="bilinear", align_corners=False),
        T[..., 1:, 2:-1],
    ]
    for output, reference in zip(run(build, {"x": X}), expected, strict=True):
        assert output.shape == tuple(reference.shape)
        assert np.abs(output - reference.numpy()).max() <= ROUNDING


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize(
    ("padding", "torch_padding", "aligned"),
    [
        ("constant", "zeros", True),
        ("constant", "zeros", False),
        ("border", "border", True),
        ("reflection", "reflection", True),
        ("symmetric", "reflection", False),
    ],
)
def test_resampling_agrees_with_grid_sample(mode, padding, torch_padding, aligned):
    grid = np.random.default_rng(1).uniform(-1.7, 1.7, (1, 3, 4, 2)).astype(np.float32)

    def build(x, grid):
        return mb.resample(
            x=x,
            coordinates=grid,
            sampling_mode=mode,
            padding_mode=padding,
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=aligned,
        )

    (output,) = run(build, {"x": X, "grid": grid})
    reference = F.grid_sample(T, torch.from_numpy(grid), mode, torch_padding, aligned).numpy()
    # Both compute positions in single precision; a pixel's slope multiplies their error.
    assert np.abs(output - reference).max() <= 64 * ROUNDING


def test_nearest_resizing_takes_the_pixel_at_the_grid_point():
    ramp = np.arange(3, dtype=np.float32).reshape(1, 1, 3)

    def build(x):
        shared = {"x": x, "resized_dims": np.uint32(1), "interpolation_mode": "NEAREST_NEIGHBOR"}
        return [
            mb.resize(**shared, shape=[6]),
            mb.resize(**shared, shape=[5], sampling_mode="STRICT_ALIGN_CORNERS"),
            mb.resize(**shared, shape=[0]),
        ]

    outputs = run(build, {"x": ramp})
    assert [output.flatten().tolist() for output in outputs] == [[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2], [0, 1, 2]]


def test_affine_transforms_agree_with_torch():
    matrix = np.array([[0.8, 0.1, -0.2, -0.1, 1.1, 0.3]], np.float32)

    def build(x, m):
        return mb.affine(
            x=x,
            transform_matrix=m,
            output_height=4,
            output_width=7,
            sampling_mode="bilinear",
            padding_mode="constant",
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=True,
        )

    (output,) = run(build, {"x": X, "m": matrix})
    grid = F.affine_grid(torch.from_numpy(matrix.reshape(1, 2, 3)), [1, 2, 4, 7], True)
    assert np.abs(output - F.grid_sample(T, grid, align_corners=True).numpy()).max() <= 64 * ROUNDING


def test_crops_of_boxes():
    x = np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4)
    boxes = np.array([[0.0, 1.0, 3.0, 2.0], [1.0, 0.0, 2.0, 3.0]], np.float32)
    indices = np.array([1, 0], np.int32)

    def build(x, boxes):
        size = {"target_height": 2, "target_width": 2, "sampling_mode": "STRICT_ALIGN_CORNERS"}
        return mb.crop_resize(x=x, boxes=boxes, box_indices=indices, **size)

    (output,) = run(build, {"x": x, "boxes": boxes})
    expected = np.stack([x[1][:, [0, 3]][:, :, [1, 2]], x[0][:, [1, 2]][:, :, [0, 3]]])
    np.testing.assert_array_equal(output, expected)


def test_non_maximum_suppression_keeps_the_best_of_overlapping_boxes():
    # Centers and sizes; the first three overlap, the last one stands alone.
    boxes = np.array([[[1.0, 1.0, 2.0, 2.0], [1.2, 1.0, 2.0, 2.0], [1.0, 1.1, 2.0, 2.0], [9.0, 9.0, 1.0, 1.0]]])
    boxes = boxes.astype(np.float32)
    scores = np.array([[[0.5, 0.1], [0.1, 0.9], [0.8, 0.2], [0.3, 0.2]]], np.float32)

    def build(boxes, scores):
        shared = {"boxes": boxes, "scores": scores, "iou_threshold": 0.5, "score_threshold": 0.05, "max_boxes": 3}
        return [
            *mb.non_maximum_suppression(**shared, per_class_suppression=False),
            *mb.non_maximum_suppression(**shared, per_class_suppression=True),
        ]

    outputs = run(build, {"boxes": boxes, "scores": scores}, ios=16)
    for start, kept in ((0, [1, 3]), (4, [1, 2, 3])):
        selected, values, indices, count = outputs[start : start + 4]
        assert count.tolist() == [len(kept)]
        assert indices[0].tolist() == kept + [-1] * (3 - len(kept))
        np.testing.assert_array_equal(selected[0, : len(kept)], boxes[0, kept])
        np.testing.assert_array_equal(values[0, : len(kept)], scores[0, kept])


def test_images_cross_as_pixels_in_the_declared_layout():
    image_module = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(2).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    x = np.zeros((1, 3, 4, 5), np.float32)

    @mb.program(input_specs=[mb.TensorSpec(x.shape)], opset_version=ct.target.iOS16)
    def program(x):
        return mb.mul(x=x, y=1.0, name="y")

    model = ct.convert(
        program,
        inputs=[ct.ImageType("x", shape=x.shape, color_layout=ct.colorlayout.BGR, scale=0.5)],
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    loaded = host.load(model)
    result = loaded.predict({"x": image_module.fromarray(pixels)})["y"]
    np.testing.assert_array_equal(result[0], pixels.transpose(2, 0, 1)[::-1] / 2)
    with pytest.raises(host.InputError, match="got an image of mode L, expected RGB"):
        loaded.predict({"x": image_module.fromarray(pixels[..., 0])})
    with pytest.raises(host.InputError, match=r"'x' is an image: got a ndarray, expected a PIL\.Image of mode RGB"):
        loaded.predict({"x": x})
    (positional,) = loaded.run([torch.from_numpy(pixels.transpose(2, 0, 1)[::-1].copy())[None]])
    np.testing.assert_array_equal(positional.numpy(), result)


def _convert_images(layout, shape, precision=ct.precision.FLOAT32, sizes=None):
    """A program from image to image that inverts brightness."""

    class Inverted(torch.nn.Module):
        def forward(self, x):
            return 255.0 - x

    return ct.convert(
        torch.jit.trace(Inverted(), torch.zeros(shape)),
        inputs=[ct.ImageType("x", shape=sizes or shape, color_layout=layout)],
        outputs=[ct.ImageType("y", color_layout=layout)],
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=precision,
        skip_model_load=True,
    )


@pytest.mark.parametrize(
    ("layout", "mode"),
    [
        (ct.colorlayout.RGB, "RGB"),
        (ct.colorlayout.BGR, "RGB"),
        (ct.colorlayout.GRAYSCALE, "L"),
        (ct.colorlayout.GRAYSCALE_FLOAT16, "F"),
    ],
    ids=str,
)
def test_images_come_out_in_the_declared_layout(layout, mode):
    image_module = pytest.importorskip("PIL.Image")
    size = (4, 5, 3) if mode == "RGB" else (4, 5)
    pixels = np.random.default_rng(3).integers(0, 256, size).astype(np.float32 if mode == "F" else np.uint8)
    precision = ct.precision.FLOAT16 if mode == "F" else ct.precision.FLOAT32
    model = _convert_images(layout, (1, 3 if mode == "RGB" else 1, 4, 5), precision)
    result = host.load(model).predict({"x": image_module.fromarray(pixels)})["y"]
    assert result.mode == mode
    np.testing.assert_array_equal(np.asarray(result), 255 - pixels)


@pytest.mark.parametrize(
    ("sizes", "allowed", "refused"),
    [
        (ct.Shape((1, 3, ct.RangeDim(4, 6), 5)), [4, 6], [3, 7]),
        (ct.EnumeratedShapes([(1, 3, 4, 5), (1, 3, 8, 5)]), [4, 8], [6]),
    ],
    ids=["range", "enumerated"],
)
def test_sizes_of_images_are_enforced(sizes, allowed, refused):
    image_module = pytest.importorskip("PIL.Image")
    model = _convert_images(ct.colorlayout.RGB, (1, 3, 4, 5), sizes=sizes)
    program = host.load(model)
    for height in allowed:
        assert program.predict({"x": image_module.new("RGB", (5, height))})["y"].size == (5, height)
    for height in refused:
        with pytest.raises(host.InputError, match=r"not in (allowed range|enumerated set)"):
            program.predict({"x": image_module.new("RGB", (5, height))})


def test_images_reach_programs_of_whole_numbers_as_such():
    image_module = pytest.importorskip("PIL.Image")

    class Transposed(torch.nn.Module):
        def forward(self, x):
            return x.transpose(-2, -1)

    layout = ct.colorlayout.GRAYSCALE
    model = ct.convert(
        torch.jit.trace(Transposed(), torch.zeros(1, 1, 4, 5)),
        inputs=[ct.ImageType("x", shape=(1, 1, 4, 5), color_layout=layout, grayscale_use_uint8=True)],
        outputs=[ct.ImageType("y", color_layout=layout)],
        minimum_deployment_target=ct.target.iOS17,
        skip_model_load=True,
    )
    program = host.load(model)
    assert program.inputs[0].dtype.name == "uint8"
    pixels = np.random.default_rng(4).integers(0, 256, (4, 5)).astype(np.uint8)
    result = program.predict({"x": image_module.fromarray(pixels)})["y"]
    np.testing.assert_array_equal(np.asarray(result), pixels.T)
