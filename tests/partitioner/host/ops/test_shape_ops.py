import numpy as np
import torch
import torch.nn.functional as F
from coremltools.converters.mil.mil import Builder as mb
from helpers.mil import run

X = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)


def _check(outputs, expected):
    for position, (output, reference) in enumerate(zip(outputs, expected, strict=True)):
        np.testing.assert_array_equal(output, reference, err_msg=f"output {position}", strict=True)


def test_reshaping():
    def build(x):
        return [
            mb.reshape(x=x, shape=[0, -1]),
            mb.reshape(x=x, shape=[1, 0, -1, 0]),
            mb.expand_dims(x=x, axes=[0, -1]),
            mb.squeeze(x=mb.expand_dims(x=x, axes=[0, 2]), axes=[0]),
            mb.transpose(x=x, perm=[2, 0, 1]),
            mb.flatten2d(x=x, axis=-1),
            mb.reshape_like(x=x, ref_tensors=(x, x), begins=[0, 1], ends=[1, 0], end_masks=[False, True]),
        ]

    expected = [
        # From iOS 17 on zeros are matched from the right: [0, -1] keeps the second to last size.
        X.reshape(3, 8),
        X[None],
        X[None, ..., None],
        X[:, None],
        X.transpose(2, 0, 1),
        X.reshape(6, 4),
        X,
    ]
    _check(run(build, {"x": X}), expected)


def test_zeros_in_shapes_before_ios17_are_matched_by_position():
    (output,) = run(lambda x: mb.reshape(x=x, shape=[0, -1, 0]), {"x": X}, ios=16)
    np.testing.assert_array_equal(output, X)


def test_slices():
    def build(x):
        return [
            mb.slice_by_index(x=x, begin=[0, 1, 0], end=[2, 3, 4], stride=[1, 1, 2]),
            mb.slice_by_index(x=x, begin=[0, -2, 0], end=[0, 0, -1], end_mask=[True, True, False]),
            mb.slice_by_index(
                x=x,
                begin=[1, 0, 0],
                end=[0, 0, 0],
                squeeze_mask=[True, False, False],
                begin_mask=[False, True, True],
                end_mask=[False, True, True],
            ),
            mb.slice_by_index(x=x, begin=[0, 2, 3], end=[2, 0, 0], stride=[1, -1, -2], end_mask=[False, True, True]),
            mb.slice_by_size(x=x, begin=[0, 1, 1], size=[2, -1, 2]),
            mb.reverse(x=x, axes=[0, 2]),
            mb.reverse_sequence(x=x, lengths=[2, 3], seq_axis=2, batch_axis=0),
        ]

    partly = X.copy()
    partly[0, :, :2], partly[1, :, :3] = X[0, :, 1::-1], X[1, :, 2::-1]
    expected = [X[0:2, 1:3, 0:4:2], X[:, -2:, :-1], X[1], X[:, 2::-1, 3::-2], X[:, 1:, 1:3], X[::-1, :, ::-1], partly]
    _check(run(build, {"x": X}), expected)


def test_slices_at_positions_known_only_at_run_time():
    begin = np.array([0, 1, 2], np.int32)
    (output,) = run(lambda x, begin: mb.slice_by_index(x=x, begin=begin, end=[2, 3, 4]), {"x": X, "begin": begin})
    np.testing.assert_array_equal(output, X[:, 1:3, 2:4])


def test_slice_update_leaves_the_rest_alone():
    update = -np.ones((1, 2, 2), np.float32)
    (output,) = run(
        lambda x: mb.slice_update(x=x, update=update, begin=[1, 0, 3], end=[2, 3, 0], stride=[1, 2, -2]),
        {"x": X},
        ios=18,
    )
    expected = X.copy()
    expected[1:2, 0:3:2, 3:0:-2] = update
    np.testing.assert_array_equal(output, expected)


def test_joining_and_splitting():
    def build(x):
        doubled = mb.mul(x=x, y=2.0)
        return [
            mb.concat(values=(x, doubled), axis=-1),
            mb.concat(values=(x, doubled), axis=1, interleave=True),
            mb.stack(values=(x, doubled), axis=1),
            *mb.split(x=x, num_splits=2, axis=2),
            *mb.split(x=x, split_sizes=[1, 2], axis=1),
            mb.sliding_windows(x=x, axis=1, size=2, stride=1),
            mb.tile(x=x, reps=[1, 2, 1]),
        ]

    interleaved = np.stack([X, 2 * X], 2).reshape(2, 6, 4)
    windows = np.stack([X[:, 0:2], X[:, 1:3]], 1)
    expected = [np.concatenate([X, 2 * X], -1), interleaved, np.stack([X, 2 * X], 1), *np.split(X, 2, 2)]
    expected += [X[:, :1], X[:, 1:], windows, np.tile(X, (1, 2, 1))]
    _check(run(build, {"x": X}), expected)


def test_space_to_depth_and_batch():
    x = np.random.default_rng(0).standard_normal((4, 8, 4, 6)).astype(np.float32)
    t = torch.from_numpy(x)

    def build(x):
        return [
            mb.pixel_shuffle(x=x, upscale_factor=2),
            mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(2)),
            mb.space_to_depth(x=mb.depth_to_space(x=x, block_size=2), block_size=2),
            mb.depth_to_space(x=x, block_size=2),
            mb.space_to_batch(x=x, block_shape=[2, 3], paddings=[[1, 1], [0, 3]]),
            mb.batch_to_space(x=x, block_shape=[2, 2], crops=[[1, 0], [0, 2]]),
        ]

    blocks = x.reshape(4, 2, 2, 2, 4, 6)
    depth = np.zeros((4, 2, 8, 12), np.float32)
    for row in range(2):
        for column in range(2):
            depth[:, :, row::2, column::2] = blocks[:, row, column]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 3)))
    batched = np.concatenate([padded[:, :, row::2, column::3] for row in range(2) for column in range(3)])
    whole = np.zeros((1, 8, 8, 12), np.float32)
    for position in range(4):
        whole[:, :, position // 2 :: 2, position % 2 :: 2] = x[position : position + 1]
    expected = [F.pixel_shuffle(t, 2).numpy(), F.pixel_unshuffle(t, 2).numpy(), x, depth, batched, whole[:, :, 1:, :-2]]
    _check(run(build, {"x": x}), expected)


def test_padding_modes():
    def build(x):
        return [
            mb.pad(x=x, pad=[1, 0, 0, 2], mode="constant", constant_val=5.0),
            mb.pad(x=x, pad=[2, 1, 3, 3], mode="reflect"),
            mb.pad(x=x, pad=[2, 1, 0, 3], mode="replicate"),
        ]

    expected = [
        np.pad(X, ((0, 0), (1, 0), (0, 2)), constant_values=5.0),
        np.pad(X, ((0, 0), (2, 1), (3, 3)), mode="reflect"),
        np.pad(X, ((0, 0), (2, 1), (0, 3)), mode="edge"),
    ]
    _check(run(build, {"x": X}), expected)


def test_tensors_made_from_numbers():
    indices = np.array([0, 2, 3], np.int32)

    def build(x, indices):
        return [
            mb.shape(x=x),
            mb.fill(shape=[2, 3], value=1.5),
            mb.fill_like(ref_tensor=x, value=2.5),
            mb.range_1d(start=1, end=10, step=3),
            mb.one_hot(indices=indices, one_hot_vector_size=4, axis=0, on_value=2.0, off_value=-1.0),
            mb.band_part(x=x, lower=0, upper=1),
            mb.cumsum(x=x, axis=2, exclusive=True, reverse=True),
            mb.cumsum(x=x, axis=0),
            mb.non_zero(x=mb.floor(x=mb.mul(x=x, y=0.1))),
        ]

    band = np.triu(np.tril(np.ones((3, 4)), 1)).astype(np.float32)
    hot = np.where(np.eye(4, dtype=np.float32)[indices].T > 0, 2.0, -1.0).astype(np.float32)
    backwards = np.cumsum(X[..., ::-1], 2)[..., ::-1] - X
    expected = [
        np.array([2, 3, 4], np.int32),
        np.full((2, 3), 1.5, np.float32),
        np.full_like(X, 2.5),
        np.array([1, 4, 7], np.int32),
        hot,
        X * band,
        backwards,
        np.cumsum(X, 0),
        np.argwhere(np.floor(X * np.float32(0.1))).astype(np.int32),
    ]
    _check(run(build, {"x": X, "indices": indices}), expected)


def test_sorting():
    x = np.random.default_rng(1).permutation(24).astype(np.float32).reshape(2, 12)

    def build(x):
        return [
            mb.argsort(x=x, axis=1),
            mb.argsort(x=x, axis=0, ascending=True),
            *mb.topk(x=x, k=3, axis=1),
            *mb.topk(x=x, k=2, axis=1, ascending=True),
            mb.topk(x=x, k=2, axis=1, return_indices=False),
        ]

    down, up = np.argsort(-x, 1).astype(np.int32), np.argsort(x, 1).astype(np.int32)
    expected = [
        down,
        np.argsort(x, 0).astype(np.int32),
        np.take_along_axis(x, down[:, :3], 1),
        down[:, :3],
        np.take_along_axis(x, up[:, :2], 1),
        up[:, :2],
        np.take_along_axis(x, down[:, :2], 1),
    ]
    _check(run(build, {"x": x}), expected)
