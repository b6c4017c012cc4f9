"""A sample of Core ML Tools' own tests, with predictions made here; `suite/run.py` runs all of them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from host.suite.expectations import read_expectations
from host.suite.run import read_sample

import partitioner.host.ops  # noqa: F401  (registers the operations)
from partitioner.host.registry import OPS

SCRIPT = Path(__file__).parent / "suite" / "run.py"
LEAST = 600
# What Core ML Tools tests against TensorFlow only, or not with ML Programs; tests beside this file check these.
NOT_REACHED = {
    "ceil",
    "classify",
    "conv_quantized",
    "depth_to_space",
    "logical_xor",
    "non_maximum_suppression",
    "reduce_l1_norm",
    "reduce_log_sum",
    "reduce_sum_square",
    "space_to_depth",
}


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


def test_the_sample_reaches_every_operation(output):
    reached = set(re.search(r"^operations: (.*)$", output, re.MULTILINE).group(1).split(", "))
    assert OPS.types() - reached <= NOT_REACHED


def test_every_expectation_has_a_reason():
    for expectation in read_expectations():
        assert expectation.tests
        assert len(expectation.reason) > 20
        re.compile(expectation.message)
