"""Scripts for ExecuTorch's backend run with only their import lines changed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from partitioner import host

SCRIPT = Path(__file__).with_name("stock_script.py")


@pytest.mark.parametrize("kind", ["static", "weight-only"])
def test_only_imports_change(kind: str, tmp_path: Path) -> None:
    output = tmp_path / "model.pte"
    result = subprocess.run(
        [sys.executable, str(SCRIPT), kind, str(output)], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    (logits,) = host.run(output, torch.randn(1, 3, 96, 96))[:1]
    assert logits.shape == (1, 10)
    assert torch.isfinite(logits).all()
