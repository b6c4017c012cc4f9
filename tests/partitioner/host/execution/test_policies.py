import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb
from helpers.mil import convert, run

from partitioner import host

RNG = np.random.default_rng(0)


def half(values):
    return np.asarray(values, np.float32).astype(np.float16).astype(np.float32)


def accumulated(products, start=0.0):
    """Sum along the last axis, rounded to half after every addition."""
    total = np.float32(start) + np.zeros(products.shape[:-1], np.float32)
    for index in range(products.shape[-1]):
        total = half(total + products[..., index])
    return total


X = half(RNG.standard_normal((2, 4, 6)) * 3)
W = half(RNG.standard_normal((5, 6)))
B = half(RNG.standard_normal(5))
IMAGE = half(RNG.standard_normal((2, 4, 6, 5)))
KERNEL = half(RNG.standard_normal((6, 2, 3, 2)))


def sequential_conv(image, kernel, groups, stride, dilation, pad):
    image = np.pad(image, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    n, _, height, width = image.shape
    outputs, inputs, kh, kw = kernel.shape
    rows = (height - (kh - 1) * dilation - 1) // stride + 1
    columns = (width - (kw - 1) * dilation - 1) // stride + 1
    result = np.zeros((n, outputs, rows, columns), np.float32)
    for out in range(outputs):
        first = out // (outputs // groups) * inputs
        for row in range(rows):
            for column in range(columns):
                top, left = row * stride, column * stride
                window = image[:, first : first + inputs, top : top + kh * dilation : dilation]
                window = window[..., left : left + kw * dilation : dilation]
                products = (window * kernel[out]).reshape(n, -1)
                result[:, out, row, column] = accumulated(products)
    return result


CASES = {
    "linear": (lambda x: mb.linear(x=x, weight=W, bias=B), X, accumulated(X[:, :, None] * W, B)),
    "matmul": (
        lambda x: mb.matmul(x=x, y=W, transpose_y=True),
        X,
        accumulated(X[:, :, None] * W),
    ),
    "reduce_sum": (
        lambda x: mb.reduce_sum(x=x, axes=[0, 2], keep_dims=True),
        X,
        accumulated(X.transpose(1, 0, 2).reshape(4, -1))[None, :, None],
    ),
    "reduce_mean": (lambda x: mb.reduce_mean(x=x, axes=[-1]), X, half(accumulated(X) / 6)),
    "conv": (
        lambda x: mb.conv(
            x=x, weight=KERNEL, groups=2, strides=[2, 2], dilations=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]
        ),
        IMAGE,
        sequential_conv(IMAGE, KERNEL, 2, 2, 2, 1),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_sequential_sums_round_after_every_addition(case):
    build, x, expected = CASES[case]
    (output,) = run(build, {"x": x}, half=True, policy="sequential16")
    np.testing.assert_array_equal(output, expected)
    (stored,) = run(build, {"x": x}, half=True, policy="storage16")
    assert not np.array_equal(output, stored)


def test_sequential_sums_are_those_of_half_precision_only():
    (output,) = run(CASES["linear"][0], {"x": X}, half=False, policy="sequential16")
    np.testing.assert_allclose(output, X @ W.T + B, rtol=0, atol=1e-5)


def test_policies_are_compared_output_by_output():
    program = host.load(
        convert(lambda x: (mb.linear(x=x, weight=W, bias=B, name="y"), mb.relu(x=x, name="z")), {"x": X}, half=True)
    )
    linear, relu = host.compare_policies(program, {"x": X})
    results = linear.results
    assert list(results) == ["float32", "storage16", "sequential16"]
    values = np.stack([*results.values()]).astype(np.float64)
    assert linear.largest == (values.max(0) - values.min(0)).max() > 0
    assert linear.mean == pytest.approx((values.max(0) - values.min(0)).mean())
    assert linear.decibels["storage16"] > linear.decibels["sequential16"] > 40
    assert (relu.largest, relu.decibels) == (0.0, {"storage16": np.inf, "sequential16": np.inf})
    assert str(linear).startswith(f"{linear.output}: largest ")


def test_what_load_takes_is_compared_without_loading(tmp_path):
    model = convert(lambda x: mb.linear(x=x, weight=W, bias=B, name="y"), {"x": X}, half=True)
    (expected,) = host.compare_policies(host.load(model), {"x": X})
    (spread,) = host.compare_policies(model, {"x": X})
    assert (spread.largest, spread.decibels) == (expected.largest, expected.decibels)
    with pytest.raises(host.ProgramFormatError, match=r"there is no file .*absent\.pte"):
        host.compare_policies(tmp_path / "absent.pte", {"x": X})
    with pytest.raises(host.InputError, match="got None; give "):
        host.compare_policies(None, {"x": X})


def test_states_start_from_zeros_under_every_policy():
    def build(x, memory):
        return mb.coreml_update_state(state=memory, value=mb.add(x=mb.read_state(input=memory), y=x), name="y")

    x = np.array([1.0, 2049.0], np.float16)
    program = host.load(convert(build, {"x": x}, ios=18, states={"memory": (2,)}))
    (spread,) = host.compare_policies(program, {"x": x}, ["float32", "storage16"])
    assert spread.largest == 0.0


@pytest.mark.parametrize("chosen", [["float32"], ["storage16", "storage16"], []])
def test_one_policy_cannot_be_compared(chosen):
    program = host.load(convert(lambda x: mb.relu(x=x), {"x": X}))
    with pytest.raises(host.InputError, match="at least two different ones"):
        host.compare_policies(program, {"x": X}, chosen)
    with pytest.raises(host.PolicyError, match="unknown precision policy 'bf16'"):
        host.compare_policies(program, {"x": X}, ["float32", "bf16"])


def test_policies_are_named_and_differ():
    x = np.array([[1.0, 2049.0]], np.float32)

    def build(x):
        return mb.cast(x=mb.add(x=mb.cast(x=x, dtype="fp16"), y=np.float16(0.0001)), dtype="fp32", name="y")

    model = convert(build, {"x": x})
    assert host.load(model).policy.name == "storage16"
    np.testing.assert_array_equal(host.load(model).predict({"x": x})["y"], [[1.0, 2048.0]])
    exact = x + np.float32(np.float16(0.0001))
    np.testing.assert_array_equal(host.load(model, policy="float32").predict({"x": x})["y"], exact)


@pytest.mark.parametrize("policy", ["exact", "float64", "", None, 16, ["float32"]])
def test_unknown_policies_are_refused(package, policy):
    with pytest.raises(host.PolicyError, match=r"choose one of \['float32', 'sequential16', 'storage16'\]") as caught:
        host.load(package, policy=policy)
    assert isinstance(caught.value, host.HostError)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(host.PolicyError, match="unknown precision policy"):
        host.enable(policy)
    with pytest.raises(host.PolicyError, match="unknown precision policy"), host.patch_coremltools(policy):
        pass
