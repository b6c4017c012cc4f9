"""Equal programs give equal bytes, in any process; unequal programs get unequal identifiers."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from helpers.lowering import blob, lower, spec
from helpers.models import build
from torch import nn

from partitioner.format.blob import read_blob

_SCRIPT = """
import hashlib, sys
from helpers.lowering import lower
from helpers.models import build
for name in ("bert", "unet"):
    buffer = lower(*build(name)).to_executorch().buffer
    print(name, hashlib.sha256(buffer).hexdigest())
"""


def network(weight: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    with torch.no_grad():
        model[0].weight.mul_(weight)
    return model


INPUTS = (torch.zeros(1, 3, 8, 8),)


def test_another_process_writes_the_same_programs() -> None:
    tests = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1",
        "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)]),
    }
    other = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    here = {name: hashlib.sha256(lower(*build(name)).to_executorch().buffer).hexdigest() for name in ("bert", "unet")}
    output, problems = other.communicate(timeout=300)
    assert other.returncode == 0, problems
    assert dict(line.split() for line in output.splitlines()) == here


def test_identifier_is_a_hash_of_the_content() -> None:
    identifiers = [
        json.loads(bytes(read_blob(blob(lower(network(weight), INPUTS)))["metadata.json"]))["identifier"]
        for weight in (1.0, 1.0, 2.0)
    ]
    assert identifiers[0] == identifiers[1] != identifiers[2]
    assert all(name.startswith("executorch_") and len(name) == len("executorch_") + 64 for name in identifiers)


def test_package_holds_nothing_but_the_model() -> None:
    manager = lower(network(), INPUTS)
    root = "model.mlpackage"
    assert set(read_blob(blob(manager))) == {
        "metadata.json",
        f"{root}/Manifest.json",
        f"{root}/Data/com.apple.CoreML/model.mlmodel",
        f"{root}/Data/com.apple.CoreML/weights/weight.bin",
    }
    model = spec(manager)
    assert not model.description.metadata.userDefined
    assert "buildInfo" not in model.mlProgram.attributes
