"""Range estimators against float64 references, on data that is hard to find a range for."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from coreml_quantizer import CalibrationError
from coreml_quantizer.estimators import ESTIMATORS, RangeObserver
from coreml_quantizer.specs import INT4, INT8, UINT8, PerChannel, Scheme, TensorSpec

BIN = 2.0**-10
"""Width of a histogram bin relative to the largest magnitude, at most."""


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def heavy_tailed() -> Tensor:
    normal = torch.randn(4, 40_000, generator=generator())
    return normal * torch.randn(4, 40_000, generator=generator().manual_seed(1)).abs() ** 3


def with_outliers() -> Tensor:
    values = torch.randn(4, 20_000, generator=generator())
    values[1, 7] = 300.0
    return values


DATA: dict[str, Callable[[], Tensor]] = {
    "normal": lambda: torch.randn(4, 20_000, generator=generator()),
    "heavy-tailed": heavy_tailed,
    "one-sided": lambda: torch.randn(4, 20_000, generator=generator()).relu(),
    "away from zero": lambda: torch.rand(4, 20_000, generator=generator()) + 5,
    "constant": lambda: torch.full((4, 100), -3.0),
    "zero": lambda: torch.zeros(4, 100),
    "tiny": lambda: torch.randn(4, 20_000, generator=generator()) * 1e-8,
    "outliers": with_outliers,
}


def observe(name: str, batches: Tensor, spec: TensorSpec, **arguments: float) -> RangeObserver:
    observer = ESTIMATORS[name](spec, **arguments)
    for batch in batches:
        observer(batch)
    return observer


def observe_and_ask(observer: RangeObserver, values: Tensor) -> None:
    observer(values)
    observer.calculate_qparams()


def ranges(observer: RangeObserver) -> tuple[float, float]:
    low, high = observer.estimate()
    return float(low), float(high)


def squared_error(values: np.ndarray, low: float, high: float, steps: int = 255) -> float:
    """Mean squared error of affine quantization to a range widened to zero, in float64."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / steps or 1.0
    zero = np.round(-low / scale)
    return float(np.mean(((np.clip(np.round(values / scale) + zero, 0, steps) - zero) * scale - values) ** 2))


@pytest.mark.parametrize("data", DATA)
def test_histograms_count_what_numpy_counts(data: str) -> None:
    batches = DATA[data]()
    observer = observe("histogram", batches, TensorSpec(UINT8))
    histogram = observer.histogram()
    values = batches.double().numpy().ravel()
    edges = np.append(histogram.left.numpy(), histogram.left.numpy()[-1] + histogram.width)
    expected, _ = np.histogram(values, edges)
    assert histogram.counts.sum() == values.size
    np.testing.assert_array_equal(histogram.counts.numpy(), expected)
    peak = np.abs(values).max()
    assert peak == 0 or histogram.width <= BIN * peak


@pytest.mark.parametrize("name", ["min_max", "histogram", "percentile", "entropy"])
@pytest.mark.parametrize("data", DATA)
def test_order_and_shards_make_no_difference(name: str, data: str) -> None:
    batches = DATA[data]()
    # Batches of very different size, so that a histogram has to widen on the way.
    batches = batches * torch.tensor([1.0, 0.01, 50.0, 3.0])[:, None]
    spec = TensorSpec(UINT8, Scheme.AFFINE)
    one = observe(name, batches, spec)
    reverse = observe(name, batches.flip(0), spec)
    parts = [observe(name, batches[:1], spec), observe(name, batches[1:], spec)]
    merged = ESTIMATORS[name](spec)
    merged.load_state(merged.merge([part.state() for part in parts]))
    assert ranges(one) == ranges(reverse) == ranges(merged)
    assert one.calculate_qparams() == merged.calculate_qparams()


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.99, 100.0])
@pytest.mark.parametrize("data", DATA)
def test_percentiles_are_within_a_bin_of_the_exact_ones(data: str, percentile: float) -> None:
    batches = DATA[data]()
    values = batches.double().numpy().ravel()
    low, high = ranges(observe("percentile", batches, TensorSpec(UINT8), percentile=percentile))
    tolerance = 2 * BIN * np.abs(values).max()
    # Between two values the exact percentile is a matter of definition: either neighbour will do.
    for found, share in ((low, 100 - percentile), (high, percentile)):
        lower, upper = (np.percentile(values, share, method=method) for method in ("lower", "higher"))
        assert lower - tolerance <= found <= upper + tolerance


@pytest.mark.parametrize("data", ["constant", "zero"])
def test_a_constant_is_kept_within_a_step(data: str) -> None:
    batches = DATA[data]()
    low, high = ranges(observe("histogram", batches, TensorSpec(UINT8, Scheme.AFFINE)))
    peak = float(batches.abs().max())
    assert squared_error(batches.double().numpy(), low, high) <= (peak / 255) ** 2 / 4


@pytest.mark.parametrize("data", sorted(set(DATA) - {"constant", "zero"}))
def test_the_least_squared_error_is_found(data: str) -> None:
    batches = DATA[data]()[:, :3000]
    values = batches.double().numpy().ravel()
    low, high = ranges(observe("histogram", batches, TensorSpec(UINT8, Scheme.AFFINE)))
    smallest, largest = min(values.min(), 0.0), max(values.max(), 0.0)
    grid = np.linspace(0.025, 1.0, 40)
    best = min(
        squared_error(values, a * smallest, b * largest)
        for a in (grid if smallest else [1.0])
        for b in (grid if largest else [1.0])
    )
    # Bins are known by their centres, which adds the variance within a bin.
    assert squared_error(values, low, high) <= 1.03 * best + (BIN * np.abs(values).max()) ** 2 / 12
    assert smallest <= low <= high <= largest


def test_symmetric_histograms_clip_both_sides_alike() -> None:
    batches = with_outliers()
    low, high = ranges(observe("histogram", batches, TensorSpec(INT8)))
    values = batches.double().numpy().ravel()
    best = min(squared_error(values, -peak, peak) for peak in np.linspace(1, 300, 600))
    assert low == values.min(), "the smaller side is not clipped"
    assert squared_error(values, -high, high) <= 1.03 * best


def reference_divergence(counts: np.ndarray, bins: int) -> float:
    reference = counts[:bins].astype(np.float64).copy()
    reference[-1] += counts[bins:].sum()
    candidate = np.zeros(bins)
    for level in range(128):
        members = [i for i in range(bins) if i * 128 // bins == level]
        filled = [i for i in members if counts[i] > 0]
        for i in filled:
            candidate[i] = sum(counts[j] for j in members) / len(filled)
    reference, candidate = reference / reference.sum(), candidate / candidate.sum()
    return sum(
        p * (math.log(p) - math.log(max(q, np.finfo(np.float64).tiny)))
        for p, q in zip(reference, candidate, strict=True)
        if p > 0
    )


@pytest.mark.parametrize("data", ["normal", "heavy-tailed", "one-sided", "outliers"])
def test_entropy_finds_the_least_divergence(data: str) -> None:
    batches = DATA[data]()
    observer = observe("entropy", batches, TensorSpec(UINT8))
    histogram = observer.histogram()
    values = np.abs(batches.double().numpy().ravel())
    size = int(max(-histogram.left[0], histogram.left[-1] + histogram.width) / histogram.width)
    counts, _ = np.histogram(values, np.arange(size + 1) * histogram.width)
    counts[0] = min(counts[0], counts[1])
    tried = [*range(128, size, 8), size]
    found = max(-ranges(observer)[0], ranges(observer)[1])
    expected = min(tried, key=lambda bins: reference_divergence(counts, bins))
    assert found == pytest.approx(min(expected * histogram.width, values.max()))


@pytest.mark.parametrize("scheme", list(Scheme))
@pytest.mark.parametrize("storage", [INT8, INT4], ids=lambda storage: storage.name)
@pytest.mark.parametrize("data", DATA)
def test_mse_is_never_worse_than_min_max(data: str, storage: object, scheme: Scheme) -> None:
    weight = DATA[data]()[:, :500]
    spec = TensorSpec(storage, scheme, PerChannel(0))
    errors = []
    for name in ("mse", "min_max"):
        observer = ESTIMATORS[name](spec)
        observer.watch_weight(weight)
        scale, zero = (value.double()[:, None] for value in observer.calculate_qparams())
        steps = torch.round(weight.double() / scale) + zero
        restored = (steps.clamp(storage.quant_min, storage.quant_max) - zero) * scale
        errors.append((restored - weight.double()).square().sum(1))
    # float32 arithmetic decides between nearly equal factors.
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()


def test_mse_finds_the_best_factor_of_its_grid() -> None:
    weight = heavy_tailed()[:, :3000]
    observer = ESTIMATORS["mse"](TensorSpec(INT4, granularity=PerChannel(0)))
    observer.watch_weight(weight)
    chosen = observer.calculate_qparams()[0].double().numpy()
    for row, scale in zip(weight.double().numpy(), chosen, strict=True):
        peak = np.abs(row).max()
        errors = {}
        for factor in np.linspace(0.2, 1.0, 64):
            candidate = float(np.float16(factor * peak / 7.5))
            errors[candidate] = np.square(np.clip(np.round(row / candidate), -8, 7) * candidate - row).sum()
        found = np.square(np.clip(np.round(row / scale), -8, 7) * scale - row).sum()
        assert found <= 1.01 * min(errors.values())


def test_percentiles_of_weights_are_exact_and_per_channel() -> None:
    weight = heavy_tailed()[:, :999].reshape(4, 37, 27).transpose(0, 1)
    observer = ESTIMATORS["percentile"](TensorSpec(INT8, granularity=PerChannel(1)), percentile=99.0)
    observer.watch_weight(weight)
    observer.calculate_qparams()
    rows = weight.double().numpy().transpose(1, 0, 2).reshape(4, -1)
    np.testing.assert_allclose(observer.max_val.numpy(), np.percentile(rows, 99, axis=1), rtol=1e-6)
    np.testing.assert_allclose(observer.min_val.numpy(), np.percentile(rows, 1, axis=1), rtol=1e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("data", DATA)
def test_scales_are_half_precision_numbers_and_zero_is_exact(name: str, data: str) -> None:
    observer = observe(name, DATA[data](), TensorSpec(UINT8, Scheme.AFFINE))
    scale, zero_point = observer.calculate_qparams()
    assert scale.shape == zero_point.shape == (1,)
    assert float(scale) < 2.0**-20 or float(scale) == float(scale.half())
    assert 0 <= int(zero_point) <= 255
    low, high = ranges(observer)
    values = DATA[data]()
    assert min(float(values.min()), 0.0) <= low <= high <= max(float(values.max()), 0.0)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_no_numbers_are_refused_by_name(name: str, value: float) -> None:
    observer = ESTIMATORS[name](TensorSpec(UINT8))
    observer.tensor_name = "linear_3"
    values = torch.randn(100, generator=generator())
    values[3] = value
    with pytest.raises(CalibrationError, match=r"'linear_3' took not-a-number or infinite values"):
        observe_and_ask(observer, values)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_nothing_seen_is_refused_by_name(name: str) -> None:
    observer = ESTIMATORS[name](TensorSpec(UINT8))
    observer.tensor_name = "linear_3"
    observer(torch.empty(0, 3))
    with pytest.raises(CalibrationError, match=r"'linear_3' was never observed"):
        observer.calculate_qparams()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_statistics_survive_saving(name: str) -> None:
    first, second = heavy_tailed()[:2], heavy_tailed()[2:]
    spec = TensorSpec(UINT8, Scheme.AFFINE)
    whole = observe(name, torch.cat([first, second]), spec)
    half = observe(name, first, spec)
    again = ESTIMATORS[name](spec)
    again.load_state_dict(copy.deepcopy(half.state_dict()))
    for batch in second:
        again(batch)
    assert again.calculate_qparams() == whole.calculate_qparams()
