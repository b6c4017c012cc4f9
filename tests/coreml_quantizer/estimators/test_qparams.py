"""Scale and zero point against a float64 reference, on ordinary and on difficult ranges."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coreml_quantizer.estimators.qparams import choose_qparams, choose_qparams_on_cpu, round_up_to_half
from coreml_quantizer.specs import INT4, INT8, UINT4, UINT8, IntegerStorage, Scheme

HALF_STEP = 2.0**-10
"""Two neighbouring float16 numbers of normal size differ by at most this, relatively."""

magnitudes = st.floats(-30, 4).map(lambda exponent: 10.0**exponent)


def reference_scale(low: float, high: float, storage: IntegerStorage, scheme: Scheme) -> float:
    steps = storage.quant_max - storage.quant_min
    low, high = min(np.float64(low), 0.0), max(np.float64(high), 0.0)
    return float(max(-low, high) / (steps / 2) if scheme is Scheme.SYMMETRIC else (high - low) / steps)


@settings(deadline=None, max_examples=300)
@given(
    low=magnitudes.map(lambda x: -x) | st.just(0.0) | magnitudes,
    width=magnitudes,
    storage=st.sampled_from([INT8, UINT8, INT4, UINT4]),
    scheme=st.sampled_from(list(Scheme)),
)
def test_scale_is_the_reference_or_the_next_half(
    low: float, width: float, storage: IntegerStorage, scheme: Scheme
) -> None:
    low32, high32 = torch.tensor(low), torch.tensor(low) + torch.tensor(width)
    scale, zero_point = choose_qparams(low32, high32, storage, scheme)
    expected = reference_scale(float(low32), float(high32), storage, scheme)
    # Three float32 operations lie between the range and the scale.
    assert float(scale) >= expected * (1 - 3 * 2**-24)
    if expected >= 2.0**-14:
        assert float(scale) <= expected * (1 + HALF_STEP) * (1 + 3 * 2**-24)
        assert float(scale) == float(scale.half())
    elif expected < 2.0**-20:
        assert float(scale) == pytest.approx(expected, rel=2**-21)
    assert storage.quant_min <= int(zero_point) <= storage.quant_max


@settings(deadline=None, max_examples=200)
@given(
    low=magnitudes.map(lambda x: -x), high=magnitudes, scheme=st.sampled_from(list(Scheme)), seed=st.integers(0, 999)
)
def test_every_value_of_the_range_comes_back_within_half_a_step(
    low: float, high: float, scheme: Scheme, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(64, generator=generator) * (high - low) + low
    scale, zero_point = choose_qparams(values.min(), values.max(), UINT8, scheme)
    quantized = torch.clamp(torch.round(values / scale) + zero_point, 0, 255)
    # An affine zero point is rounded too, which moves both ends by up to half a step; a symmetric uint8 loses half
    # a step at its upper end, because 255 steps have no middle.
    error = (quantized - zero_point) * scale - values
    assert float(error.abs().max()) <= float(scale) * 1.001


@pytest.mark.parametrize("peak", [1e-8, 1e-12, 1e-30])
def test_tiny_ranges_keep_their_resolution(peak: float) -> None:
    scale, _ = choose_qparams(torch.tensor(0.0), torch.tensor(peak), UINT8, Scheme.AFFINE)
    assert float(scale) == pytest.approx(peak / 255, rel=1e-6)


def test_a_range_of_zero_width_at_zero() -> None:
    scale, zero_point = choose_qparams(torch.zeros(3), torch.zeros(3), INT8, Scheme.SYMMETRIC)
    assert scale.tolist() == [1.0, 1.0, 1.0]
    assert zero_point.tolist() == [0, 0, 0]


def test_a_constant_is_represented() -> None:
    scale, zero_point = choose_qparams(torch.tensor(5.0), torch.tensor(5.0), UINT8, Scheme.AFFINE)
    assert int(zero_point) == 0
    assert float(torch.round(5.0 / scale) * scale) == pytest.approx(5.0, abs=float(scale) / 2)


def test_rounding_up_to_half_is_the_next_representable_number() -> None:
    scales = torch.rand(4096, generator=torch.Generator().manual_seed(0)) + 1e-3
    rounded = round_up_to_half(scales).numpy()
    exact = scales.numpy().astype(np.float64)
    assert (rounded >= exact).all()
    assert (np.nextafter(rounded.astype(np.float16), np.float16(0)).astype(np.float64) < exact).all()


def test_scales_outside_of_half_are_left_alone() -> None:
    scales = torch.tensor([1e-9, 7e4, 1e20])
    assert torch.equal(round_up_to_half(scales), scales)


@pytest.mark.parametrize("choose", [choose_qparams, choose_qparams_on_cpu])
@pytest.mark.parametrize("scheme", list(Scheme))
def test_the_whole_of_float32_has_a_finite_scale(choose: Callable[..., tuple[Tensor, Tensor]], scheme: Scheme) -> None:
    largest = torch.tensor([torch.finfo(torch.float32).max])
    scale, zero_point = choose(-largest, largest, UINT8, scheme)
    assert float(scale) == pytest.approx(2 * float(largest) / 255, rel=2**-22)
    assert int(zero_point) == 128
