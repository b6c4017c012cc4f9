"""Scripts for ExecuTorch's backend run with only their import lines changed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.models import signal_to_noise

from partitioner import host

SCRIPT = Path(__file__).with_name("stock_script.py")


@pytest.mark.parametrize("kind", ["static", "weight-only"])
def test_only_imports_change(kind: str, tmp_path: Path) -> None:
    output, evaluation = tmp_path / "model.pte", tmp_path / "evaluation.pt"
    result = subprocess.run(
        [sys.executable, str(SCRIPT), kind, str(output), str(evaluation)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert result.returncode == 0, result.stderr
    sample, expected = torch.load(evaluation)
    (logits,) = host.run(output, sample, policy="float32")
    assert expected.std() > 0.1
    assert signal_to_noise(expected, logits) >= 50.0
