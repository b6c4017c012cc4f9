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
        tests: Patterns of test names, ``*`` matching anything.
        message: Regular expression that the failure's message contains.
        reason: Why what the test expects does not hold here.
    """

    tests: tuple[str, ...]
    message: str
    reason: str

    def covers(self, record: Mapping[str, Any]) -> bool:
        """Whether a failed test is one of these."""
        named = any(fnmatchcase(record["name"], pattern) for pattern in self.tests)
        return named and re.search(self.message, record["message"], re.DOTALL) is not None


def read_expectations(path: Path = LIST) -> Sequence[Expectation]:
    """The list; every entry has all three fields."""
    entries = yaml.safe_load(path.read_text())
    return [Expectation(tuple(entry["tests"]), entry["message"], entry["reason"]) for entry in entries]
