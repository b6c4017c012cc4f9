"""A pytest plugin that selects tests of Core ML Tools, seeds them, and records how each one ended."""

import gc
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import coremltools
import numpy as np
import pytest
import torch

from partitioner.host.loading import Program
from partitioner.host.registry import OPS

ROOT = Path(coremltools.__file__).parent
SEED = 0
_MESSAGE_CHARACTERS = 600
_TESTS_BETWEEN_FREEZES = 50


def seed_everything() -> None:
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002  (the generator that the tests draw from)
    torch.manual_seed(SEED)


def names_of(items: Iterable[pytest.Item]) -> dict[str, pytest.Item]:
    """Name -> test. A name is ``path::function#position``: node ids hold random numbers, positions do not change."""
    positions: dict[str, int] = defaultdict(int)
    named: dict[str, pytest.Item] = {}
    for item in items:
        inside = item.nodeid.partition("[")[0].partition("::")[2]
        base = f"{item.path.relative_to(ROOT).as_posix()}::{inside}"
        named[f"{base}#{positions[base]}"] = item
        positions[base] += 1
    return named


class Recorder:
    """Runs the tests that ``choose`` keeps, and records each.

    Args:
        choose: Takes the names of all tests and returns those to run, in order.
        output: File that gets one JSON line for each test as it ends, or None.
        earlier: Records of an earlier run, whose tests are not run again.

    Attributes:
        records: What the lines hold: name, id, outcome, seconds, number of predictions, operations run, message.
        remaining: How many of the chosen tests have not ended yet.
    """

    def __init__(
        self,
        choose: Callable[[list[str]], Sequence[str]],
        output: Path | None = None,
        earlier: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.records = list(earlier)
        self._choose = choose
        self._output = output
        self._names: dict[str, str] = {}
        self._file: IO[str] | None = None
        self._predictions = 0
        self._operations: set[str] = set()
        self.remaining = 0

    def pytest_configure(self, config: pytest.Config) -> None:
        # Some parameters are drawn while tests are collected.
        seed_everything()
        with ExitStack() as stack:
            if self._output is not None:
                self._file = stack.enter_context(self._output.open("w"))
                self._file.writelines(json.dumps(record) + "\n" for record in self.records)
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(Program, "_predict", self._recording(Program._predict))
            config.add_cleanup(stack.pop_all().close)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        named = names_of(items)
        done = {record["name"] for record in self.records}
        kept = {name: named[name] for name in self._choose(list(named)) if name not in done}
        config.hook.pytest_deselected(items=[item for name, item in named.items() if name not in kept])
        items[:] = kept.values()
        self.remaining = len(kept)
        self._names = {item.nodeid: name for name, item in named.items()}

    def pytest_runtest_logstart(self) -> None:
        if self.remaining % _TESTS_BETWEEN_FREEZES == 0:
            # Every conversion collects garbage; without this it searches all modules, tests and reports each time.
            gc.collect()
            gc.freeze()
        # Not at setup, which skipped tests do not reach.
        seed_everything()
        self._predictions = 0
        self._operations = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        record = {
            "name": self._names[report.nodeid],
            "id": report.nodeid.partition("[")[2].removesuffix("]"),
            "outcome": report.outcome,
            "seconds": round(report.duration, 3),
            "predictions": self._predictions,
            "operations": sorted(self._operations),
            "message": _message(report),
        }
        self.records.append(record)
        self.remaining -= 1
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def _recording(self, predict: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(program: Program, function: Any, *args: Any) -> Any:
            self._predictions += 1
            for op in function.body.walk():
                definition = OPS.find(op.type, function.opset)
                if definition is not None:
                    self._operations.add(f"{op.type} {definition.since.name}")
            return predict(program, function, *args)

        return recorded


def _message(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else "" if report.outcome == "passed" else str(report.longrepr)
    return text[:_MESSAGE_CHARACTERS]
