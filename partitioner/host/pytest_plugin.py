"""Pytest plugin: ``pytest -p partitioner.host.pytest_plugin`` runs ``MLModel.predict`` on this machine.

Core ML Tools is told that it runs on macOS, before any test is imported: its test helpers then compare numbers, and
tests that are skipped below a version of macOS run.
"""

from contextlib import ExitStack

import pytest

from partitioner.host.execution.policy import FLOAT32, get_policy
from partitioner.host.patching import patch_coremltools

_MACOS_VERSION = (26, 0)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option that chooses the precision policy."""
    parser.addoption("--coreml-policy", default=FLOAT32.name, help="precision policy of predictions on this machine")


def pytest_configure(config: pytest.Config) -> None:
    """Makes ``predict`` use the host runtime until the run ends.

    Raises:
        pytest.UsageError: The policy is unknown.
    """
    from coremltools import _deps
    from coremltools.converters.mil import testing_utils
    from coremltools.models import utils

    try:
        policy = get_policy(config.getoption("--coreml-policy"))
    except ValueError as error:
        raise pytest.UsageError(f"--coreml-policy: {error}") from None
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(_deps, "_IS_MACOS", True)
        patch.setattr(utils, "_is_macos", lambda: True)
        patch.setattr(utils, "_macos_version", lambda: _MACOS_VERSION)
        stack.enter_context(patch_coremltools(policy))
        # Imported with Core ML Tools itself, so it has copied the flag.
        patch.setattr(testing_utils, "_IS_MACOS", True)
        config.add_cleanup(stack.pop_all().close)
