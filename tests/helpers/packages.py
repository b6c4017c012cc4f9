"""One small package for many tests: a matrix product."""

import tempfile
from pathlib import Path

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from helpers.mil import convert

WEIGHT = np.arange(32, dtype=np.float32).reshape(4, 8) / 8
X = np.arange(8, dtype=np.float32)[None]


def linear_model() -> ct.models.MLModel:
    """``y = x @ WEIGHT.T``."""
    return convert(lambda x: mb.linear(x=x, weight=WEIGHT, name="y"), {"x": X})


def package_files(model: ct.models.MLModel) -> dict[str, bytes]:
    """The files of a model's package by the paths that they have in a delegate blob."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.mlpackage"
        model.save(str(path))
        return {
            f"model.mlpackage/{file.relative_to(path).as_posix()}": file.read_bytes()
            for file in sorted(path.rglob("*"))
            if file.is_file()
        }
