"""Scripts for ExecuTorch's backend run with only their import lines changed, and twice to the same bytes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from partitioner import host

SCRIPT = Path(__file__).with_name("stock_script.py")


def run(kind: str, output: Path, hash_seed: str) -> bytes:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    subprocess.run([sys.executable, str(SCRIPT), kind, str(output)], check=True, env=environment, capture_output=True)
    return output.read_bytes()


@pytest.mark.parametrize("kind", ["static", "weight-only"])
def test_only_imports_change_and_the_bytes_do_not(kind: str, tmp_path: Path) -> None:
    first, second = (run(kind, tmp_path / f"{seed}.pte", seed) for seed in ("1", "2"))
    assert first == second
    (logits,) = host.run(first, torch.randn(1, 3, 96, 96))[:1]
    assert logits.shape == (1, 10)
    assert torch.isfinite(logits).all()
