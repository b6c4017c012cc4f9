"""What many tests of the host read, made once."""

import gc
import json
from pathlib import Path

import pytest
from host.packages import linear_model, package_files


def pytest_collection_finish() -> None:
    _leave_alive_objects_out_of_collections()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is not None and nextitem.path != item.path:
        _leave_alive_objects_out_of_collections()


def _leave_alive_objects_out_of_collections() -> None:
    # Every conversion collects garbage, which takes fifty times longer than converting when modules, tests and what
    # else lives on are visited.
    gc.collect()
    gc.freeze()


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
