"""What all tests run under."""

import gc

import pytest


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
