"""The longer examples, which fail by themselves when something does not do what it should."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["qat_digits.py"],
        ["sensitivity.py"],
        [*TORCHRUN, "qat_distributed.py"],
        [*TORCHRUN, "qat_distributed.py", "--shard"],
    ],
    ids=["digits", "sensitivity", "replicated", "sharded"],
)
def test_example(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=EXAMPLES, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_the_distributed_example_says_how_it_is_started() -> None:
    done = subprocess.run(
        [sys.executable, "qat_distributed.py"],
        cwd=EXAMPLES,
        env={name: value for name, value in os.environ.items() if name != "RANK"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "torchrun --nproc-per-node 2 qat_distributed.py" in done.stderr
    assert "Traceback" not in done.stderr
