"""Runs Core ML Tools' own tests, from its installed package, with predictions made by the host runtime.

    python tests/coremltools_suite/run.py                       everything (over an hour)
    python tests/coremltools_suite/run.py --sample              the tests that sample.txt names, a minute
    python tests/coremltools_suite/run.py --count 500 --seed 3  some of the tests, chosen at random
    python tests/coremltools_suite/run.py --only torch --seed 0 --output report.jsonl --resume
                                                         in a random order, going on where an earlier run was stopped


Only tests of ML Programs are run. In a random order, what has been run when a run is stopped is a fair sample.
A failure counts unless `expectations.yaml` lists it, with the reason why what the test expects does not hold here; the
script fails when there are others.
"""
# ruff: noqa: T201  (its output is what it is for)

import argparse
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from coremltools import _deps

# Read by the tests when they are imported: leaves out models that are no ML Programs.
os.environ["PYMIL_TEST_TARGETS"] = "mlprogram"
sys.path.insert(0, str(Path(__file__).parents[1]))

from coremltools_suite.expectations import Expectation, read_expectations
from coremltools_suite.recorder import ROOT, Recorder

FOLDERS = {"mil": "converters/mil/mil/ops/tests", "torch": "converters/mil/frontend/torch/test"}
SAMPLE = Path(__file__).with_name("sample.txt")


def read_sample() -> list[str]:
    return SAMPLE.read_text().split()


def read_report(path: Path, retry: bool) -> list[dict[str, Any]]:
    """The tests that an earlier run has finished, without the failed ones if they are to be run again."""
    # A run that was killed may have left half a line.
    lines = (
        [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []
    )
    records = [json.loads(line) for line in lines]
    return [record for record in records if not (retry and record["outcome"] == "failed")]


def run(
    folders: Sequence[str],
    choose: Callable[[list[str]], Sequence[str]],
    output: Path | None,
    earlier: Sequence[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Runs the chosen tests except those in ``earlier``; one record for each that was run, now or earlier."""
    _do_without_optional_packages()
    recorder = Recorder(choose, output, earlier)
    options = ["-q", "--tb=no", "--no-summary", "-W", "ignore", "-p", "no:cacheprovider"]
    plugins = ["-p", "partitioner.host.pytest_plugin"]
    place = ["-c", os.devnull, "--rootdir", str(ROOT)]
    status = pytest.main([*options, *plugins, *place, *(str(ROOT / folder) for folder in folders)], [recorder])
    if status == pytest.ExitCode.INTERRUPTED:
        print(f"stopped: {recorder.remaining} of the chosen tests were not run")
    elif status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise SystemExit(f"the tests could not be run: pytest ended with {status!r}")
    return recorder.records


def summarize(records: Sequence[dict[str, Any]], expectations: Sequence[Expectation]) -> int:
    """Prints how the tests ended; the number of failures that no expectation covers."""
    failed = [record for record in records if record["outcome"] == "failed"]
    reasons = {record["name"]: next((e.reason for e in expectations if e.covers(record)), None) for record in failed}
    for record in failed:
        if reasons[record["name"]] is None:
            print(f"UNEXPECTED {record['name']}\n    {record['id']}\n    {record['message']}")
    for reason, count in Counter(filter(None, reasons.values())).most_common():
        print(f"{count:5} listed: {reason}")
    unexpected = sum(reason is None for reason in reasons.values())
    reached = sum(record["predictions"] > 0 for record in records)
    listed = sum(bool(record["predictions"]) for record in failed if reasons[record["name"]] is not None)
    operations = {operation for record in records for operation in record["operations"]}
    outcomes = Counter(record["outcome"] for record in records)
    print(f"operations: {', '.join(sorted({operation.split()[0] for operation in operations}))}")
    print(f"tests: {dict(outcomes)}, predictions reached: {reached}, operation versions: {len(operations)}")
    print(f"listed of those that reached a prediction: {listed} ({listed / max(reached, 1):.2%})")
    print(f"unexpected failures: {unexpected}")
    return unexpected


def _do_without_optional_packages() -> None:
    """Lets test files be imported that need a package for a few of their tests only."""
    if find_spec("torchvision") is None:
        sys.modules["torchvision"] = ModuleType("torchvision")
    if find_spec("peft") is None:
        _deps._HAS_HF = False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=FOLDERS, help="run the tests of one folder")
    parser.add_argument("--sample", action="store_true", help="run the tests that sample.txt names")
    parser.add_argument("--count", type=int, help="run this many tests, chosen at random")
    parser.add_argument("--seed", type=int, help="run in a random order, from this seed")
    parser.add_argument("--output", type=Path, help="file that gets a JSON line for each test")
    parser.add_argument("--resume", action="store_true", help="leave out tests that the output file already has")
    parser.add_argument("--retry", action="store_true", help="like --resume, but run those again that failed")
    options = parser.parse_args()
    resume = options.resume or options.retry
    if resume and options.output is None:
        parser.error("--resume and --retry need --output, the file that an earlier run wrote")

    def choose(names: list[str]) -> Sequence[str]:
        if options.sample:
            missing = sorted(set(sample) - set(names))
            if missing:
                raise SystemExit(f"sample.txt names {len(missing)} tests that do not exist, such as {missing[0]}")
            return sample
        if options.count is None and options.seed is None:
            return names
        return random.Random(options.seed or 0).sample(names, len(names))[: options.count]

    sample = read_sample() if options.sample else []
    folders = [FOLDERS[options.only]] if options.only else [*FOLDERS.values()]
    if options.sample:
        folders = [folder for folder in folders if any(test.startswith(folder) for test in sample)]
    earlier = read_report(options.output, options.retry) if resume else []
    return 1 if summarize(run(folders, choose, options.output, earlier), read_expectations()) else 0


if __name__ == "__main__":
    sys.exit(main())
