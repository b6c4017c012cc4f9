"""Fake quantization and its gradients against float64 arithmetic and torch's own kernels."""

import pytest
import torch
from torch import Tensor

from coreml_quantizer.estimators import MinMaxObserver, MovingAverageObserver, extremes
from coreml_quantizer.estimators.qparams import choose_qparams, choose_qparams_on_cpu
from coreml_quantizer.qat.quantizers.learnable import LearnableFakeQuantize
from coreml_quantizer.qat.quantizers.numbers import choose_grid, choose_grids, extremes_on_cpu, move_range, move_ranges
from coreml_quantizer.qat.quantizers.rounding import (
    fake_quantize_blocks,
    fake_quantize_channels,
    fake_quantize_tensor,
)
from coreml_quantizer.specs import INT4, INT8, UINT8, IntegerStorage, PerChannel, Scheme, TensorSpec, Training


def values(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(*shape, requires_grad=True)


@pytest.mark.parametrize("storage", [INT8, UINT8, INT4], ids=lambda storage: storage.name)
@pytest.mark.parametrize("zero_point", [0, 3])
def test_one_scale_agrees_with_torch(storage: IntegerStorage, zero_point: int) -> None:
    scale, point = torch.tensor([0.031]), torch.tensor([zero_point], dtype=torch.int32)
    x, y = values(64, 33), values(64, 33)
    limits = storage.quant_min, storage.quant_max
    ours = fake_quantize_tensor(x, scale, point, *limits)
    torchs = torch.fake_quantize_per_tensor_affine(y, scale, point, *limits)
    gradient = torch.randn(64, 33)
    ours.backward(gradient)
    torchs.backward(gradient)
    assert torch.equal(ours, torchs)
    assert torch.equal(x.grad, y.grad)
    assert (x.grad == 0).any(), "something is clipped"


@pytest.mark.parametrize("axis", [0, 1])
def test_channels_agree_with_torch(axis: int) -> None:
    x, y = values(5, 5, 7), values(5, 5, 7)
    scale = torch.tensor([0.004, 0.01, 0.02, 0.5, 0.008])
    point = torch.tensor([0, 3, -5, 0, 1], dtype=torch.int32)
    ours = fake_quantize_channels(x, scale, point, axis, -128, 127)
    torchs = torch.fake_quantize_per_channel_affine(y, scale, point, axis, -128, 127)
    gradient = torch.randn(5, 5, 7)
    ours.backward(gradient)
    torchs.backward(gradient)
    assert torch.equal(ours, torchs)
    assert torch.equal(x.grad, y.grad)


def test_a_negative_scale_turns_the_grid_around() -> None:
    x = values(4, 9)
    scale = torch.tensor([[0.02], [-0.02], [0.5], [-0.001]])
    result = fake_quantize_blocks(x, scale, torch.zeros(4, 1), -128, 127)
    expected = torch.cat(
        [
            torch.sign(step) * fake_quantize_blocks(torch.sign(step) * row, step.abs(), torch.zeros(1), -128, 127)
            for row, step in zip(x, scale, strict=True)
        ]
    ).reshape(4, 9)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("clip", [(0.0, float("inf")), (0.0, 6.0), (-1.0, 1.0)])
def test_clipping_is_part_of_quantizing(clip: tuple[float, float]) -> None:
    scale, point = torch.tensor([0.011]), torch.tensor([7], dtype=torch.int32)
    x, y = values(50, 40), values(50, 40)
    fused = fake_quantize_tensor(x * 4, scale, point, 0, 255, clip)
    apart = fake_quantize_tensor((y * 4).clamp(*clip), scale, point, 0, 255)
    fused.sum().backward()
    apart.sum().backward()
    assert torch.equal(fused, apart)
    assert torch.equal(x.grad, y.grad)


@pytest.mark.parametrize("scheme", list(Scheme))
@pytest.mark.parametrize("storage", [INT8, UINT8, INT4], ids=lambda storage: storage.name)
def test_both_ways_to_choose_a_grid_agree(scheme: Scheme, storage: IntegerStorage) -> None:
    generator = torch.Generator().manual_seed(0)
    magnitude = 10.0 ** (torch.rand(4000, generator=generator) * 44 - 38)
    low = -torch.rand(4000, generator=generator) * magnitude
    high = torch.rand(4000, generator=generator) * magnitude
    low[:10], high[10:20] = 0.0, 0.0
    low[20:30] = high[20:30] = 0.0
    ours, reference = (choose(low, high, storage, scheme) for choose in (choose_qparams_on_cpu, choose_qparams))
    for found, expected in zip(ours, reference, strict=True):
        assert found.dtype is expected.dtype
        assert torch.equal(found, expected)


@pytest.mark.parametrize("scheme", list(Scheme))
@pytest.mark.parametrize("storage", [INT8, UINT8, INT4], ids=lambda storage: storage.name)
def test_grids_in_numbers_are_those_of_tensors(scheme: Scheme, storage: IntegerStorage) -> None:
    generator = torch.Generator().manual_seed(1)
    magnitude = 10.0 ** (torch.rand(2000, generator=generator) * 44 - 38)
    low = (torch.rand(2000, generator=generator) - 0.8) * magnitude
    high = low + torch.rand(2000, generator=generator) * magnitude
    low[:10] = high[:10] = 0.0
    scales, zero_points = choose_qparams(low, high, storage, scheme)
    numbers = [choose_grid(*ends, storage, scheme) for ends in zip(low.tolist(), high.tolist(), strict=True)]
    assert numbers == list(zip(scales.tolist(), zero_points.tolist(), strict=True))
    usable = (scales > 1e-5) & (scales < 1e4)
    for chosen in (slice(None), usable):
        ends = low[chosen].clamp(max=0).numpy(), high[chosen].clamp(min=0).numpy()
        arrays = choose_grids(*ends, storage, scheme)
        assert torch.equal(torch.from_numpy(arrays[0]), scales[chosen])
        assert bool((torch.as_tensor(arrays[1]) == zero_points[chosen]).all())


@pytest.mark.parametrize("kind", [MinMaxObserver, MovingAverageObserver])
def test_ranges_in_numbers_move_like_those_of_tensors(kind: type[MinMaxObserver | MovingAverageObserver]) -> None:
    generator = torch.Generator().manual_seed(2)
    reference, channels = (kind(TensorSpec(INT8)) for _ in range(2))
    numbers = [kind(TensorSpec(INT8)) for _ in range(3)]
    channels.min_val, channels.max_val = torch.full((3,), torch.inf), torch.full((3,), -torch.inf)
    for _ in range(50):
        low, high = torch.randn(3, generator=generator) - 1, torch.randn(3, generator=generator) + 1
        reference.update_range(low, high)
        move_ranges(channels, low.numpy(), high.numpy())
        for observer, *ends in zip(numbers, low.tolist(), high.tolist(), strict=True):
            move_range(observer, *ends)
    one_step = 50 * 2.0**-24  # float32 rounds a little at each of 50 steps, and torch fuses two roundings into one
    for name in ("min_val", "max_val"):
        expected = getattr(reference, name)
        found = torch.stack([getattr(observer, name) for observer in numbers])
        torch.testing.assert_close(found, expected, rtol=one_step, atol=0)
        torch.testing.assert_close(getattr(channels, name), expected, rtol=one_step, atol=0)


@pytest.mark.parametrize("axis", [-1, 0, 1, 3])
def test_extremes_on_a_cpu_are_the_extremes(axis: int) -> None:
    x = values(5, 6, 3, 4).detach()
    for ours, expected in zip(extremes_on_cpu(x, axis), extremes(x, axis), strict=True):
        assert torch.equal(ours, expected)
    x[2, 3, 1, 2] = torch.nan
    assert all(end.isnan().any() for end in extremes_on_cpu(x, axis))


def learnable(spec: TensorSpec, weight: Tensor | None = None) -> LearnableFakeQuantize:
    return LearnableFakeQuantize(MinMaxObserver(spec), weight)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_learned_steps_have_the_gradient_of_the_paper(bits: int) -> None:
    """Esser et al. 2020, equation 3 and section 2.2, in float64."""
    highest = 2 ** (bits - 1) - 1
    storage = IntegerStorage(f"int{bits}", torch.int8, -highest - 1, highest, 0)
    weight = values(6, 20).detach().double().requires_grad_()
    quantizer = learnable(TensorSpec(storage, training=Training(learnable=True)), weight)
    gradient = torch.randn(6, 20, dtype=torch.float64)
    quantizer(weight).backward(gradient)
    x, step = weight.detach(), quantizer.calculate_qparams()[0].double()
    scaled = x / step
    by_step = torch.where(
        scaled <= -highest - 1,
        torch.full_like(x, -highest - 1),
        torch.where(scaled >= highest, torch.full_like(x, highest), scaled.round() - scaled),
    )
    expected = (gradient * by_step).sum() / (x.numel() * highest) ** 0.5
    torch.testing.assert_close(quantizer.step.grad.double(), expected.reshape(1), rtol=1e-5, atol=1e-8)
    passes = (scaled > -highest - 1) & (scaled < highest)
    torch.testing.assert_close(weight.grad, gradient * passes, rtol=0, atol=0)


def test_learned_steps_start_where_the_paper_starts() -> None:
    weight = values(6, 20)
    quantizer = learnable(TensorSpec(INT8, granularity=PerChannel(0), training=Training(learnable=True)), weight)
    quantizer(weight)
    expected = 2 * weight.detach().double().abs().mean(1) / 127**0.5
    torch.testing.assert_close(quantizer.step.detach().double(), expected, rtol=1e-6, atol=0)


def test_learned_steps_learn() -> None:
    """A step that starts far from the best one moves to where the error is smaller."""
    weight = values(2000).detach()
    quantizer = learnable(
        TensorSpec(IntegerStorage("int2", torch.int8, -2, 1, 0), training=Training(learnable=True)), weight
    )
    quantizer(weight)
    before = (quantizer(weight) - weight).square().mean().item()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        (quantizer(weight) - weight).square().mean().backward()
        optimizer.step()
    assert (quantizer(weight) - weight).square().mean().item() < 0.9 * before


def test_a_moving_average_lags_and_clips() -> None:
    from coreml_quantizer.qat.quantizers.estimated import FakeQuantize

    quantizer = FakeQuantize(MovingAverageObserver(TensorSpec(UINT8, Scheme.AFFINE), momentum=0.1))
    quantizer(torch.linspace(0, 1, 11))
    result = quantizer(torch.linspace(0, 11, 12))
    assert 1.9 <= result.max() <= 2.02, "0.9 * 1 + 0.1 * 11"
