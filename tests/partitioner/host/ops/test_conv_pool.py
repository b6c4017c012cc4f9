import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coremltools.converters.mil.mil import Builder as mb
from helpers.mil import run

# A dot product of n terms in single precision is within n units of the sum of the terms' magnitudes.
EPSILON = np.finfo(np.float32).eps


def _check(outputs, expected, magnitudes, terms):
    for output, reference, magnitude in zip(outputs, expected, magnitudes, strict=True):
        assert output.shape == tuple(reference.shape)
        assert (np.abs(output - reference.numpy()) <= terms * EPSILON * (magnitude.numpy() + 1e-6)).all()


def _same(size, kernel, stride):
    total = max(0, -(-size // stride) * stride + kernel - stride - size)
    return total // 2, total - total // 2


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolution_pads_strides_dilates_and_groups(rank):
    generator = np.random.default_rng(rank)
    size, kernel = 7, 3
    x = generator.standard_normal((2, 4) + (size,) * rank).astype(np.float32)
    w = generator.standard_normal((6, 2) + (kernel,) * rank).astype(np.float32)
    b = generator.standard_normal(6).astype(np.float32)
    conv = getattr(F, f"conv{rank}d")
    variants = list(itertools.product([1, 2], [1, 2]))
    asymmetric = [0, 2] * rank

    def build(x):
        results = []
        for stride, dilation in variants:
            shared = {"x": x, "weight": w, "bias": b, "groups": 2}
            steps = {"strides": [stride] * rank, "dilations": [dilation] * rank}
            results.append(mb.conv(**shared, **steps, pad_type="valid"))
            results.append(mb.conv(**shared, **steps, pad_type="custom", pad=asymmetric))
            results.append(mb.conv(**shared, **steps, pad_type="same"))
            results.append(mb.conv(**shared, **steps, pad_type="same_lower"))
        return results

    def reference(values, weight, bias, stride, dilation, before, after):
        padded = F.pad(torch.from_numpy(values), [before, after] * rank)
        return conv(padded, torch.from_numpy(weight), torch.from_numpy(bias), stride, 0, dilation, 2)

    def references(values, weight, bias):
        results = []
        for stride, dilation in variants:
            before, after = _same(size, (kernel - 1) * dilation + 1, stride)
            pads = ((0, 0), (0, 2), (before, after), (after, before))
            results += [reference(values, weight, bias, stride, dilation, *pair) for pair in pads]
        return results

    doubles = [value.astype(np.float64) for value in (x, w, b)]
    expected, magnitude = references(*doubles), references(*map(np.abs, doubles))
    _check(run(build, {"x": x}), expected, magnitude, w[0].size + 2)


@pytest.mark.parametrize("rank", [1, 2])
def test_transposed_convolution_crops_to_every_padding(rank):
    generator = np.random.default_rng(10 + rank)
    x = generator.standard_normal((1, 4) + (5,) * rank).astype(np.float32)
    w = generator.standard_normal((4, 3) + (3,) * rank).astype(np.float32)
    b = generator.standard_normal(6).astype(np.float32)
    conv = getattr(F, f"conv_transpose{rank}d")
    shape = [1, 6] + [10] * rank

    def build(x):
        shared = {"x": x, "weight": w, "bias": b, "groups": 2}
        steps = {"strides": [2] * rank}
        return [
            mb.conv_transpose(**shared, **steps, pad_type="valid"),
            mb.conv_transpose(**shared, **steps, pad_type="same"),
            mb.conv_transpose(**shared, **steps, pad_type="custom", pad=[1, 1] * rank),
            mb.conv_transpose(**shared, **steps, pad_type="custom", pad=[0, 2] * rank),
            mb.conv_transpose(**shared, **steps, pad_type="custom", pad=[1, 1] * rank, output_shape=shape),
            mb.conv_transpose(**shared, dilations=[2] * rank),
        ]

    def references(values, weight, bias):
        values, weight, bias = map(torch.from_numpy, (values, weight, bias))
        full = conv(values, weight, bias, 2, 0, 0, 2)
        inner = (slice(None), slice(None), *(slice(0, full.shape[-1] - 2),) * rank)
        # "same" keeps stride * size elements: one of the eleven goes, from the end.
        same = (slice(None), slice(None), *(slice(0, 10),) * rank)
        return [
            full,
            full[same],
            conv(values, weight, bias, 2, 1, 0, 2),
            full[inner],
            conv(values, weight, bias, 2, 1, 1, 2),
            conv(values, weight, bias, 1, 0, 0, 2, 2),
        ]

    doubles = [value.astype(np.float64) for value in (x, w, b)]
    _check(run(build, {"x": x}), references(*doubles), references(*map(np.abs, doubles)), 2 * 3**rank + 2)


def test_pools_of_every_padding():
    x = np.random.default_rng(3).standard_normal((1, 2, 7, 8)).astype(np.float32)
    t = torch.from_numpy(x.astype(np.float64))
    shared = {"kernel_sizes": [3, 2], "strides": [2, 2]}
    custom = {**shared, "pad_type": "custom", "pad": [1, 1, 1, 0]}

    def build(x):
        return [
            mb.max_pool(x=x, **shared, pad_type="valid"),
            mb.max_pool(x=x, **shared, pad_type="same"),
            mb.max_pool(x=x, **custom),
            mb.max_pool(x=x, **shared, pad_type="valid", ceil_mode=True),
            mb.avg_pool(x=x, **shared, pad_type="valid"),
            mb.avg_pool(x=x, **custom),
            mb.avg_pool(x=x, **custom, exclude_padding_from_average=True),
            mb.avg_pool(x=x, **shared, pad_type="custom", pad=[1, 1, 1, 1], exclude_padding_from_average=True),
            mb.l2_pool(x=x, **shared, pad_type="valid"),
        ]

    lowest = F.pad(t, (1, 0, 1, 1), value=-torch.inf)
    zeros, inside = F.pad(t, (1, 0, 1, 1)), F.pad(torch.ones_like(t), (1, 0, 1, 1))
    means = F.avg_pool2d(zeros, (3, 2), 2)
    expected = [
        F.max_pool2d(t, (3, 2), 2),
        F.max_pool2d(F.pad(t, (0, 0, 1, 1), value=-torch.inf), (3, 2), 2),
        F.max_pool2d(lowest, (3, 2), 2),
        F.max_pool2d(t, (3, 2), 2, ceil_mode=True),
        F.avg_pool2d(t, (3, 2), 2),
        means,
        means / F.avg_pool2d(inside, (3, 2), 2),
        F.avg_pool2d(t, (3, 2), 2, padding=1, count_include_pad=False),
        F.avg_pool2d(t.square(), (3, 2), 2, divisor_override=1).sqrt(),
    ]
    _check(run(build, {"x": x}), expected, [torch.full_like(value, 4.0) for value in expected], 8)


@pytest.mark.parametrize("rank", [1, 3])
def test_pools_of_other_ranks(rank):
    x = np.random.default_rng(4).standard_normal((2, 3) + (6,) * rank).astype(np.float32)
    t = torch.from_numpy(x)
    sizes = {"kernel_sizes": [2] * rank, "strides": [2] * rank, "pad_type": "valid"}
    outputs = run(lambda x: [mb.max_pool(x=x, **sizes), mb.avg_pool(x=x, **sizes)], {"x": x})
    np.testing.assert_array_equal(outputs[0], getattr(F, f"max_pool{rank}d")(t, 2).numpy())
    reference = getattr(F, f"avg_pool{rank}d")(t.double(), 2).numpy()
    assert (np.abs(outputs[1] - reference) <= 2**rank * EPSILON * 4).all()
