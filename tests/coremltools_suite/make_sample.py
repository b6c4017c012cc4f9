"""Chooses the sample that CI runs, from reports of `run.py --output`.

    python tests/host/suite/make_sample.py report.jsonl...

Of the tests that passed with a prediction, the sample holds the fastest of every version of every operation; and of
the tests of operations the fastest of every function, and others at random, from a fixed seed, among the faster half.
Tests of the PyTorch frontend take longer and are taken only for operations that no other test reaches. The last report
decides about a test that several have.
"""

import argparse
import json
import random
import statistics
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

SIZE = 640
SEED = 0
PREFERRED = "converters/mil/mil/ops/tests/"
# Need torchvision, which CI does without.
NEED_MORE = "*::TestNms::*"
SAMPLE = Path(__file__).with_name("sample.txt")


def choose(records: Iterable[dict[str, Any]]) -> list[str]:
    passed = [record for record in records if record["outcome"] == "passed" and record["predictions"]]
    passed = [record for record in passed if not fnmatchcase(record["name"], NEED_MORE)]
    passed.sort(key=lambda record: (record["seconds"], record["name"]))
    usable = [record for record in passed if record["name"].startswith(PREFERRED)]
    rest = [record for record in passed if not record["name"].startswith(PREFERRED)]
    fastest: dict[str, str] = {}
    for record in usable:
        fastest.setdefault(record["name"].partition("#")[0], record["name"])
    for record in [*usable, *rest]:
        for operation in record["operations"]:
            fastest.setdefault(operation, record["name"])
    chosen = set(fastest.values())
    limit = statistics.median(record["seconds"] for record in usable)
    others = sorted(record["name"] for record in usable if record["seconds"] <= limit and record["name"] not in chosen)
    random.Random(SEED).shuffle(others)
    return sorted([*chosen, *others[: max(0, SIZE - len(chosen))]])


def main(reports: Sequence[Path]) -> None:
    lines = [line for report in reports for line in report.read_text().splitlines()]
    last = {record["name"]: record for record in map(json.loads, lines)}
    SAMPLE.write_text("\n".join(choose(last.values())) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="+", type=Path, help="what run.py --output wrote")
    main(parser.parse_args().reports)
