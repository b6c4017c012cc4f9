import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb
from helpers.mil import run

from partitioner import host

X = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
COMBINE = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
}


def _check(outputs, expected):
    for position, (output, reference) in enumerate(zip(outputs, expected, strict=True)):
        np.testing.assert_array_equal(output, reference, err_msg=f"output {position}", strict=True)


def test_gathers():
    rows = np.array([[0, 4], [-1, 2]], np.int32)
    along = np.random.default_rng(1).integers(0, 5, (2, 4, 3)).astype(np.int32)
    points = np.array([[[0, 1], [1, 4]]], np.int32)

    def build(x):
        return [
            mb.gather(x=x, indices=rows, axis=1),
            mb.gather(x=x, indices=np.int32(2), axis=-1),
            mb.gather(x=x, indices=rows, axis=1, batch_dims=1),
            mb.gather_along_axis(x=x, indices=along, axis=1),
            mb.gather_nd(x=x, indices=points),
            mb.gather_nd(x=x, indices=np.array([[[0], [2]], [[4], [1]]], np.int32), batch_dims=1),
        ]

    expected = [
        X[:, rows],
        X[:, :, 2],
        np.stack([X[0][rows[0]], X[1][rows[1]]]),
        np.take_along_axis(X, along, 1),
        X[points[..., 0], points[..., 1]],
        np.stack([X[0][[0, 2]], X[1][[4, 1]]]),
    ]
    _check(run(build, {"x": X}, ios=16), expected)


@pytest.mark.parametrize("mode", ["update", *COMBINE])
def test_scatters(mode):
    generator = np.random.default_rng(2)
    rows = np.array([3, 0], np.int32)
    updates = np.abs(generator.standard_normal((2, 2, 3))).astype(np.float32) + 0.5
    along = np.array([[[0, 1, 2]], [[4, 3, 3]]], np.int32)
    single = updates[:, :1]
    points = np.array([[0, 1], [1, 4]], np.int32)

    def build(x):
        return [
            mb.scatter(data=x, indices=rows, updates=updates, axis=1, mode=mode),
            mb.scatter_along_axis(data=x, indices=along, updates=single, axis=1, mode=mode),
            mb.scatter_nd(data=x, indices=points, updates=updates[0], mode=mode),
        ]

    def apply(old, new):
        return new if mode == "update" else COMBINE[mode](old, new)

    expected = [X.copy() for _ in range(3)]
    for position, row in enumerate(rows):
        expected[0][:, row] = apply(expected[0][:, row], updates[:, position])
    for index in np.ndindex(along.shape):
        place = (index[0], along[index], index[2])
        expected[1][place] = apply(expected[1][place], single[index])
    for position, point in enumerate(points):
        expected[2][tuple(point)] = apply(expected[2][tuple(point)], updates[0, position])
    _check(run(build, {"x": X}), expected)


@pytest.mark.parametrize("mode", ["add", "sub", "mul", "max"])
def test_repeated_indices_accumulate(mode):
    rows = np.array([1, 1, 1], np.int32)
    updates = np.array([[2.0], [4.0], [8.0]], np.float32)
    data = np.ones((2, 1), np.float32)
    (output,) = run(lambda x: mb.scatter(data=x, indices=rows, updates=updates, axis=0, mode=mode), {"x": data})
    assert output[0, 0] == 1.0
    assert output[1, 0] == {"add": 15.0, "sub": -13.0, "mul": 64.0, "max": 8.0}[mode]


def test_validated_indices_must_not_be_negative():
    index = np.array([-1], np.int32)

    def build(x, i):
        return [
            mb.gather(x=x, indices=i, axis=1, validate_indices=True),
            mb.scatter(data=x, indices=i, updates=X[:, :1], axis=1, validate_indices=True),
        ]

    with pytest.raises(host.ExecutionError, match="index -1 is negative and the operation validates its indices"):
        run(build, {"x": X, "i": index})
