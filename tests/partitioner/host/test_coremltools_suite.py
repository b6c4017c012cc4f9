"""A sample of Core ML Tools' own tests, with predictions made here; `coremltools_suite/run.py` runs all of them."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coremltools.converters.mil.mil import Builder as mb
from coremltools_suite.expectations import read_expectations
from coremltools_suite.run import read_sample
from helpers.mil import run

import partitioner.host.ops  # noqa: F401  (registers the operations)
from partitioner.host.registry import OPS

SCRIPT = Path(__file__).parents[2] / "coremltools_suite" / "run.py"
LEAST = 600


@pytest.fixture(scope="module")
def output():
    result = subprocess.run([sys.executable, str(SCRIPT), "--sample"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout


def test_the_sample_passes(output):
    assert "unexpected failures: 0" in output
    reached = int(re.search(r"predictions reached: (\d+)", output).group(1))
    assert reached >= LEAST
    assert len(read_sample()) == len(set(read_sample())) >= LEAST


def _conv_quantized():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 3, 5, 5)).astype(np.float32)
    weight = rng.integers(0, 256, (4, 3, 2, 2)).astype(np.uint8)
    scale, offset = (rng.uniform(0.1, 0.2, 4).astype(np.float32) for _ in range(2))

    def build(x):
        quantization = {"quantization_type": "linear", "quant_scale": scale, "quant_bias": offset}
        return mb.conv_quantized(x=x, weight=weight, **quantization)

    (output,) = run(build, {"x": x}, ios=15)
    dense = weight * scale[:, None, None, None].astype(np.float64) + offset[:, None, None, None]
    expected = F.conv2d(torch.from_numpy(x).double(), torch.from_numpy(dense)).numpy()
    # Sums of twelve products in single precision.
    assert np.abs(output - expected).max() <= 32 * np.finfo(np.float32).eps * np.abs(expected).max()


def _non_maximum_suppression():
    # Centers and sizes: the second overlaps the first by a third, the third by two thirds, the last one stands alone.
    boxes = np.array([[[1.0, 1.0, 2.0, 2.0], [2.0, 1.0, 2.0, 2.0], [1.4, 1.0, 2.0, 2.0], [9.0, 9.0, 1.0, 1.0]]])
    scores = np.array([[[0.5], [0.2], [0.4], [0.1]]], np.float32)
    boxes = boxes.astype(np.float32)
    shared = {"iou_threshold": 0.5, "max_boxes": 4}
    *_, old, count = run(
        lambda boxes, scores: mb.non_maximum_suppression(boxes=boxes, scores=scores, score_threshold=0.15, **shared),
        {"boxes": boxes, "scores": scores},
        ios=16,
    )
    assert (old.tolist(), count.tolist()) == ([[0, 1, -1, -1]], [2])
    feed = {"boxes": boxes.transpose(0, 2, 1).copy(), "scores": scores.transpose(0, 2, 1).copy()}
    *_, new = run(lambda boxes, scores: mb.non_maximum_suppression(boxes=boxes, scores=scores, **shared), feed, ios=17)
    assert new.tolist() == [[0, 1, 3, -1]]


# What the tests of Core ML Tools reach nowhere, or not without torchvision.
BESIDE = {"conv_quantized": _conv_quantized, "non_maximum_suppression": _non_maximum_suppression}


@pytest.mark.parametrize("operation", BESIDE)
def test_operations_that_the_sample_does_not_reach(operation):
    BESIDE[operation]()


def test_every_operation_is_reached(output):
    reached = set(re.search(r"^operations: (.*)$", output, re.MULTILINE).group(1).split(", "))
    assert reached.isdisjoint(BESIDE)
    assert reached | BESIDE.keys() == OPS.types()


def test_every_expectation_has_a_reason():
    for expectation in read_expectations():
        assert expectation.tests
        assert len(expectation.reason) > 20
        re.compile(expectation.message)
