from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from helpers.mil import half_ulps, run, single_ulps
from numpy.typing import NDArray

# Single precision functions of torch and libm are accurate to a few units in the last place.
SINGLE_ULPS = 8
# Float32 arithmetic and one rounding to half: the nearest half or its neighbor.
HALF_ULPS = 0.5 + 2**-6


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[..., object]
    reference: Callable[..., NDArray]
    low: float = -3.0
    high: float = 3.0

    def inputs(self, count: int) -> dict[str, NDArray]:
        generator = np.random.default_rng(len(self.name))
        names = ("x", "y")[:count]
        # Values that half precision holds, so that both policies see the same inputs.
        return {name: generator.uniform(self.low, self.high, (2, 3, 4)).astype(np.float16) for name in names}


def _sigmoid(x: NDArray) -> NDArray:
    return 1 / (1 + np.exp(-x))


def _gelu(x: NDArray) -> NDArray:
    return torch.nn.functional.gelu(torch.from_numpy(x)).numpy()


ALPHAS, BETAS = np.array([0.25, 0.5, 2.0], np.float32), np.array([1.0, 0.5, 1.5], np.float32)
_A, _B = ALPHAS[:, None].astype(np.float64), BETAS[:, None].astype(np.float64)

UNARY = [
    Case("relu", lambda x: mb.relu(x=x), lambda x: np.maximum(x, 0)),
    Case("relu6", lambda x: mb.relu6(x=x), lambda x: np.clip(x, 0, 6), high=9.0),
    Case("sigmoid", lambda x: mb.sigmoid(x=x), _sigmoid),
    Case("silu", lambda x: mb.silu(x=x), lambda x: x * _sigmoid(x)),
    Case("softplus", lambda x: mb.softplus(x=x), lambda x: np.logaddexp(x, 0), -90.0, 90.0),
    Case("softsign", lambda x: mb.softsign(x=x), lambda x: x / (1 + abs(x))),
    # Further below, 1 + erf(x) cancels and a relative error says nothing.
    Case("gelu", lambda x: mb.gelu(x=x), _gelu, low=-1.0),
    Case(
        "gelu_tanh",
        lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        low=-1.0,
    ),
    Case("gelu_sigmoid", lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"), lambda x: x * _sigmoid(1.702 * x)),
    Case("elu", lambda x: mb.elu(x=x, alpha=0.5), lambda x: np.where(x > 0, x, 0.5 * np.expm1(x))),
    Case("leaky_relu", lambda x: mb.leaky_relu(x=x, alpha=0.25), lambda x: np.where(x >= 0, x, 0.25 * x)),
    Case(
        "prelu",
        lambda x: mb.prelu(x=x, alpha=np.full(3, 0.25, np.float32)),
        lambda x: np.where(x > 0, x, 0.25 * x),
    ),
    Case("thresholded_relu", lambda x: mb.thresholded_relu(x=x, alpha=0.5), lambda x: np.where(x >= 0.5, x, 0)),
    Case(
        "clamped_relu",
        lambda x: mb.clamped_relu(x=x, alpha=2.0, beta=1.0),
        lambda x: np.minimum(1.0, np.where(x >= 0, x, 2.0 * x)),
    ),
    Case("linear_activation", lambda x: mb.linear_activation(x=x, alpha=2.0, beta=8.0), lambda x: 2 * x + 8),
    Case("scaled_tanh", lambda x: mb.scaled_tanh(x=x, alpha=2.0, beta=0.5), lambda x: 2 * np.tanh(0.5 * x)),
    Case("sigmoid_hard", lambda x: mb.sigmoid_hard(x=x, alpha=0.25, beta=0.5), lambda x: np.clip(0.25 * x + 0.5, 0, 1)),
    Case(
        "softplus_parametric",
        lambda x: mb.softplus_parametric(x=x, alpha=ALPHAS, beta=BETAS),
        lambda x: _A * np.logaddexp(x * _B, 0),
    ),
    Case("softmax", lambda x: mb.softmax(x=x, axis=1), lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)),
    Case("abs", lambda x: mb.abs(x=x), np.abs),
    Case("acos", lambda x: mb.acos(x=x), np.arccos, -0.9, 0.9),
    Case("asin", lambda x: mb.asin(x=x), np.arcsin, -0.9, 0.9),
    Case("atan", lambda x: mb.atan(x=x), np.arctan),
    Case("atanh", lambda x: mb.atanh(x=x), np.arctanh, -0.9, 0.9),
    Case("ceil", lambda x: mb.ceil(x=x), np.ceil),
    Case("clip", lambda x: mb.clip(x=x, alpha=-1.0, beta=0.5), lambda x: np.clip(x, -1, 0.5)),
    Case("cos", lambda x: mb.cos(x=x), np.cos, -1.4, 1.4),
    Case("cosh", lambda x: mb.cosh(x=x), np.cosh),
    Case("erf", lambda x: mb.erf(x=x), lambda x: torch.erf(torch.from_numpy(x)).numpy()),
    Case("exp", lambda x: mb.exp(x=x), np.exp),
    Case("exp2", lambda x: mb.exp2(x=x), np.exp2),
    Case("floor", lambda x: mb.floor(x=x), np.floor),
    Case("identity", lambda x: mb.identity(x=x), lambda x: x),
    Case("inverse", lambda x: mb.inverse(x=x, epsilon=0.5), lambda x: 1 / (x + 0.5), low=0.5),
    Case("log", lambda x: mb.log(x=x, epsilon=2.0), lambda x: np.log(x + 2), low=0.5),
    Case("round", lambda x: mb.round(x=x), np.round),
    Case("rsqrt", lambda x: mb.rsqrt(x=x, epsilon=0.5), lambda x: 1 / np.sqrt(x + 0.5), low=0.5),
    Case("sign", lambda x: mb.sign(x=x), np.sign),
    Case("sin", lambda x: mb.sin(x=x), np.sin, 0.1, 3.0),
    Case("sinh", lambda x: mb.sinh(x=x), np.sinh),
    Case("sqrt", lambda x: mb.sqrt(x=x), np.sqrt, low=0.1),
    Case("square", lambda x: mb.square(x=x), np.square),
    Case("tan", lambda x: mb.tan(x=x), np.tan, -1.2, 1.2),
    Case("tanh", lambda x: mb.tanh(x=x), np.tanh),
    Case("threshold", lambda x: mb.threshold(x=x, alpha=0.5), lambda x: np.maximum(x, 0.5)),
]

BINARY = [
    Case("add", lambda x, y: mb.add(x=x, y=y), np.add),
    Case("sub", lambda x, y: mb.sub(x=x, y=y), np.subtract),
    Case("mul", lambda x, y: mb.mul(x=x, y=y), np.multiply),
    Case("real_div", lambda x, y: mb.real_div(x=x, y=y), np.divide, low=0.5),
    Case("floor_div", lambda x, y: mb.floor_div(x=x, y=y), np.floor_divide, low=0.5),
    Case("mod", lambda x, y: mb.mod(x=x, y=y), np.mod, low=0.5),
    Case("pow", lambda x, y: mb.pow(x=x, y=y), np.power, low=0.5),
    Case("maximum", lambda x, y: mb.maximum(x=x, y=y), np.maximum),
    Case("minimum", lambda x, y: mb.minimum(x=x, y=y), np.minimum),
]


def _compare(cases: list[Case], inputs: int, half: bool, ios: int) -> dict[str, float]:
    """Runs all cases as one program; distance of each from its float64 reference."""
    given = [case.inputs(inputs) for case in cases]
    feed = {
        f"{name}_{index}": value.astype(np.float32)
        for index, arrays in enumerate(given)
        for name, value in arrays.items()
    }

    def build(**values: object) -> list[object]:
        return [
            case.build(**{name: values[f"{name}_{index}"] for name in arrays})
            for index, (case, arrays) in enumerate(zip(cases, given, strict=True))
        ]

    outputs = run(build, feed, half=half, ios=ios, policy="storage16")
    measure = half_ulps if half else single_ulps
    return {
        case.name: measure(output, case.reference(*(value.astype(np.float64) for value in arrays.values())))
        for case, arrays, output in zip(cases, given, outputs, strict=True)
    }


@pytest.mark.parametrize(("cases", "inputs"), [(UNARY, 1), (BINARY, 2)], ids=["unary", "binary"])
@pytest.mark.parametrize(
    ("half", "ios", "limit"),
    [(False, 15, SINGLE_ULPS), (True, 17, HALF_ULPS)],
    ids=["single", "half"],
)
def test_matches_the_float64_reference(cases, inputs, half, ios, limit):
    distances = _compare(cases, inputs, half, ios)
    assert {name: distance for name, distance in distances.items() if distance > limit} == {}


def test_comparisons_and_logic_return_truth_values():
    x = np.array([-1.0, 0.0, 2.0], np.float32)
    y = np.array([0.0, 0.0, 1.0], np.float32)

    def build(x, y):
        less, equal = mb.less(x=x, y=y), mb.equal(x=x, y=y)
        results = [
            less,
            equal,
            mb.greater(x=x, y=y),
            mb.greater_equal(x=x, y=y),
            mb.less_equal(x=x, y=y),
            mb.not_equal(x=x, y=y),
            mb.logical_and(x=less, y=equal),
            mb.logical_or(x=less, y=equal),
            mb.logical_xor(x=less, y=equal),
            mb.logical_not(x=less),
        ]
        return [mb.cast(x=result, dtype="int32") for result in results]

    expected = [x < y, x == y, x > y, x >= y, x <= y, x != y, (x < y) & (x == y), x <= y, (x < y) ^ (x == y), x >= y]
    outputs = run(build, {"x": x, "y": y})
    assert [output.tolist() for output in outputs] == [value.astype(np.int32).tolist() for value in expected]
    assert {output.dtype for output in outputs} == {np.dtype(np.int32)}


def test_integers_stay_integers():
    x = np.array([7, -7, 9, 2], np.int32)
    y = np.array([2, 2, -4, 3], np.int32)
    operations = ("add", "sub", "mul", "floor_div", "mod", "maximum", "minimum", "real_div")
    outputs = run(lambda x, y: [getattr(mb, name)(x=x, y=y) for name in operations], {"x": x, "y": y})
    expected = [x + y, x - y, x * y, x // y, x % y, np.maximum(x, y), np.minimum(x, y), np.trunc(x / y)]
    assert [output.tolist() for output in outputs] == [value.astype(np.int32).tolist() for value in expected]


def test_cast_truncates_towards_zero_and_rounds_to_the_declared_type():
    x = np.array([-1.75, 1.75, 0.1, 2049.0], np.float32)

    def build(x):
        return [
            mb.cast(x=x, dtype="int32"),
            mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32"),
            mb.cast(x=mb.cast(x=x, dtype="bool"), dtype="fp32"),
        ]

    rounded = run(build, {"x": x}, policy="storage16")
    assert rounded[0].tolist() == [-1, 1, 0, 2049]
    np.testing.assert_array_equal(rounded[1], x.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(rounded[2], np.ones(4, np.float32))
    np.testing.assert_array_equal(run(build, {"x": x}, policy="float32")[1], x)


def test_select_takes_from_either_side():
    x = np.array([[-1.0, 2.0], [3.0, -4.0]], np.float32)
    (output,) = run(lambda x: mb.select(cond=mb.greater(x=x, y=0.0), a=x, b=0.5), {"x": x})
    np.testing.assert_array_equal(output, np.where(x > 0, x, 0.5))
