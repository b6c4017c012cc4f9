"""The reviewed list of tests whose expectation does not hold off-Apple."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

LIST = Path(__file__).with_name("expectations.yaml")


@dataclass(frozen=True)
class Expectation:
    """Failures that are understood.

    Attributes:
        predicted: Whether the test may have made a prediction before it failed.
        tests: Patterns of test names, ``*`` matching anything.
        message: Regular expression that the failure's message contains.
        reason: Why what the test expects does not hold here.
    """

    predicted: bool
    tests: tuple[str, ...]
    message: str
    reason: str

    def covers(self, record: Mapping[str, Any]) -> bool:
        """Whether a failed test is one of these."""
        named = any(fnmatchcase(record["name"], pattern) for pattern in self.tests)
        return (
            (self.predicted or not record["predictions"])
            and named
            and re.search(self.message, record["message"], re.DOTALL) is not None
        )


def read_expectations(path: Path = LIST) -> Sequence[Expectation]:
    """The list; every entry has all its fields."""
    lists = yaml.safe_load(path.read_text())
    return [
        Expectation(name == "predicted", tuple(entry["tests"]), entry["message"], entry["reason"])
        for name in ("not_predicted", "predicted")
        for entry in lists[name]
    ]
