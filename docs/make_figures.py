"""Writes docs/figures.md from the records that the benchmarks left in docs/benchmarks; a test fails when they differ.

python docs/make_figures.py
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("figures.md")
RECORDS = Path(__file__).with_name("benchmarks")
HEAD = """# Figures

Made from the records of the benchmarks by `python docs/make_figures.py`. Each compares side by side in one run, because
machines differ and are noisy: ratios mean more than seconds.
"""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """One benchmark.

    Attributes:
        name: Its script in `benchmarks` and its record.
        title: What it compares.
        columns: Heading -> the key of a row, or what makes the cell from a row.
    """

    name: str
    title: str
    columns: Mapping[str, str | Callable[[Record], object]]


def _in(field: str, key: str) -> Callable[[Record], object]:
    return lambda row: row[field].get(key, "did not run")


SECTIONS = (
    Section(
        "prepare",
        "Seconds of `prepare_pt2e`, and of `convert_pt2e` behind it",
        {
            "model": "model",
            "ours": "ours_s",
            "of that, before we are asked": "torchao_folds_s",
            "with ten names": "ten_names_s",
            "with `fold_batch_norms` first": "folded_first_s",
            "ExecuTorch's quantizer": "stock_s",
            "ours / theirs": "ratio",
            "folded first / theirs": "folded_first_ratio",
            "convert": "convert_s",
        },
    ),
    Section(
        "calibration",
        "A batch of calibration, relative to the float forward of the same exported graph",
        {
            "model": "model",
            "ours": _in("ratios", "ours"),
            "torchao min-max": _in("ratios", "torchao min-max"),
            "XNNPACK": _in("ratios", "XNNPACKQuantizer"),
            "coreai-opt": _in("ratios", "coreai-opt"),
            "ExecuTorch's quantizer": _in("ratios", "stock CoreMLQuantizer"),
        },
    ),
    Section(
        "training",
        "A step of quantization-aware training, relative to a float step",
        {
            "model": "model",
            "ours": "ours_ratio",
            "coremltools": "coremltools_ratio",
            "XNNPACK": "xnnpack_ratio",
            "coreai-opt": "coreai-opt_ratio",
        },
    ),
    Section(
        "lowering",
        "Processor seconds from exported program to `.pte`, megabytes of memory, share of the file that is no weight",
        {
            "model": "model",
            "way": "way",
            "parameters (M)": "parameters (M)",
            "seconds": "processor (s)",
            "memory": "memory (MB)",
            "not weights (%)": "not weights (%)",
        },
    ),
    Section(
        "host_speed",
        "Milliseconds of a forward pass on one thread: PyTorch on float model and converted graph, and the host",
        {
            "model": "model",
            "quantization": "quantization",
            "float": "float ms",
            "converted": "converted ms",
            "`float32`": "float32 ms",
            "`storage16`": "storage16 ms",
        },
    ),
    Section(
        "agreement",
        "Decibels of the converted graph against the float model, and of the `.pte` against the converted graph (small "
        "networks with random weights)",
        {
            "model": "model",
            "quantization": "quantization",
            "converted / float": "converted / float",
            "`float32`": "float32",
            "`storage16`": "storage16",
        },
    ),
)


def render() -> str:
    """Returns the whole page."""
    return HEAD + "".join(map(_section, SECTIONS))


def _section(section: Section) -> str:
    record = json.loads((RECORDS / f"{section.name}.json").read_text())
    machine = {key: record.get("machine", record)[key] for key in ("date", "cpu", "cores", "python", "torch")}
    made = "{date}, {cpu}, {cores} cores, Python {python}, torch {torch}".format(**machine)
    lines = [tuple(section.columns), ("---",) * len(section.columns)]
    lines += [tuple(_cell(row, key) for key in section.columns.values()) for row in record["rows"]]
    table = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
    return f"\n## {section.title}\n\n`python benchmarks/{section.name}.py`, {made}.\n\n{table}"


def _cell(row: Record, key: str | Callable[[Record], object]) -> object:
    return row.get(key, "-") if isinstance(key, str) else key(row)


if __name__ == "__main__":
    TARGET.write_text(render())
