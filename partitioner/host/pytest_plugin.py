"""Pytest plugin: ``pytest -p partitioner.host.pytest_plugin`` runs ``MLModel.predict`` on this machine.

It also lets coremltools' own test helpers, which compare numbers on macOS only, compare them here.
"""

from collections.abc import Iterator

import pytest

from partitioner.host.patching import patch_coremltools

_MACOS_VERSION = (26, 0)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that chooses the precision policy."""
    parser.addoption("--coreml-policy", default="float32", help="precision policy of predictions on this machine")


@pytest.fixture(scope="session", autouse=True)
def coreml_on_host(request: pytest.FixtureRequest) -> Iterator[None]:
    """Predict with the host runtime for the whole session."""
    from coremltools.converters.mil import testing_utils
    from coremltools.models import utils

    with pytest.MonkeyPatch.context() as patch, patch_coremltools(request.config.getoption("--coreml-policy")):
        patch.setattr(testing_utils, "_IS_MACOS", True)
        patch.setattr(utils, "_macos_version", lambda: _MACOS_VERSION)
        yield
