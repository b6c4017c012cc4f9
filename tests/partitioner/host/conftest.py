"""What many tests of the host read, made once."""

import json
from pathlib import Path

import pytest
from helpers.packages import linear_model, package_files


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of a matrix product; not to be changed."""
    path = tmp_path_factory.mktemp("package") / "model.mlpackage"
    linear_model().save(str(path))
    return path


@pytest.fixture(scope="session")
def blob_files() -> dict[str, bytes]:
    """The same as the files of a delegate blob."""
    metadata = {"inputNames": ["x"], "outputNames": ["y"]}
    return {"metadata.json": json.dumps(metadata).encode(), **package_files(linear_model())}
