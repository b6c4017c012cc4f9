"""How fast the host runtime is, how fast it loads, and how much memory it takes.

    python benchmarks/host_speed.py [--output docs/benchmarks/host_speed.json]

Forward times are medians of interleaved runs on one thread: the float model and the converted graph in eager PyTorch,
and the lowered program under each precision policy. Load and memory are measured on a stack of large matrix products,
each in a process of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from machine import machine
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813  (its usual name)
from executorch.exir import to_edge_transform_and_lower
from helpers.models import ARCHITECTURES, build
from helpers.pipeline import W8, W8A8, lower
from torch import Tensor, nn

from partitioner import CoreMLBackend, CoreMLPartitioner, host

BOUNDS = {"float32 / converted": 1.0, "float32 / float": 1.6, "storage16 / float": 2.5}
LOAD_SECONDS = 0.5
PEAK_OF_WEIGHTS = 2.5
_SECONDS_A_MODEL = 2.0
_LEAST_RUNS = 15
_WIDTH, _LAYERS = 1024, 50
_LOADS = 3
_KINDS = {"float": "float", "W8": W8, "W8A8": W8A8}


def interleaved_medians(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Median seconds of each call, run in turns so that a busy machine slows all of them."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    end = time.perf_counter() + _SECONDS_A_MODEL
    while time.perf_counter() < end or len(times[0]) < _LEAST_RUNS:
        for taken, call in zip(times, calls, strict=True):
            begin = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begin)
    return [statistics.median(taken) for taken in times]


def prepared(name: str, kind: str) -> tuple[nn.Module, nn.Module, bytes, tuple[Tensor, ...]]:
    """The float model, the graph that is lowered, the `.pte`, and inputs."""
    model, inputs = build(name)
    if kind != "float":
        lowered = lower(model, inputs, _KINDS[kind])
        return model, lowered.converted, lowered.pte, inputs
    exported = torch.export.export(model, inputs)
    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS17)
    edge = to_edge_transform_and_lower(exported, partitioner=[CoreMLPartitioner(compile_specs=specs)])
    return model, exported.module(), bytes(edge.to_executorch().buffer), inputs


def measure_forward(name: str, kind: str) -> dict[str, object]:
    model, converted, pte, inputs = prepared(name, kind)
    programs = [host.load(pte, policy=policy) for policy in ("float32", "storage16")]
    runs = [lambda program=program: program.run(inputs) for program in programs]
    with torch.no_grad():
        floating, eager, single, half = interleaved_medians([lambda: model(*inputs), lambda: converted(*inputs), *runs])
    return {
        "model": name,
        "quantization": kind,
        "float ms": round(floating * 1e3, 2),
        "converted ms": round(eager * 1e3, 2),
        "float32 ms": round(single * 1e3, 2),
        "storage16 ms": round(half * 1e3, 2),
        "float32 / converted": round(single / eager, 2),
        "float32 / float": round(single / floating, 2),
        "storage16 / float": round(half / floating, 2),
    }


def save_large_package(path: str) -> None:
    """A package of `_LAYERS` matrix products with 2 MB of float16 weights each."""
    generator = np.random.default_rng(0)

    @mb.program(input_specs=[mb.TensorSpec((1, _WIDTH))], opset_version=ct.target.iOS16)
    def program(x: object) -> object:
        for _ in range(_LAYERS):
            weight = generator.standard_normal((_WIDTH, _WIDTH), np.float32) / _WIDTH**0.5
            x = mb.linear(x=x, weight=weight)
        return x

    ct.convert(program, minimum_deployment_target=ct.target.iOS16, skip_model_load=True).save(path)


def measure_load() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "large.mlpackage")
        save_large_package(path)
        command = [sys.executable, str(Path(__file__).with_name("host_load.py")), path]
        runs = [json.loads(subprocess.check_output(command)) for _ in range(_LOADS)]
    median = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return {
        "load seconds": round(median["load"], 3),
        # What it takes on a machine that is not shared.
        "load CPU seconds": round(median["load CPU"], 3),
        "load and first run seconds": round(median["load and first run"], 3),
        "peak / float32 weights": round(median["peak bytes"] / (_LAYERS * _WIDTH**2 * 4), 2),
    }


def report(rows: list[dict[str, object]], load: dict[str, float], output: Path) -> bool:
    """Prints and writes the figures; whether all bounds hold."""
    table = Table(*rows[0], title="milliseconds, one thread")
    for row in rows:
        table.add_row(*map(str, row.values()))
    medians = {name: statistics.median(float(str(row[name])) for row in rows) for name in BOUNDS}
    console = Console()
    console.print(table)
    console.print({"medians": medians, "bounds": BOUNDS, **load})
    output.parent.mkdir(parents=True, exist_ok=True)
    # Seconds say little on a busy machine; ratios of interleaved runs say more.
    busy = {"load average": round(os.getloadavg()[1], 1)}
    figures = {**machine(), **busy, "medians": medians, "bounds": BOUNDS, "100 MB program": load, "rows": rows}
    output.write_text(json.dumps(figures, indent=2) + "\n")
    held = all(medians[name] <= bound for name, bound in BOUNDS.items())
    return held and load["load seconds"] <= LOAD_SECONDS and load["peak / float32 weights"] <= PEAK_OF_WEIGHTS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/host_speed.json"))
    output: Path = parser.parse_args().output
    torch.set_num_threads(1)
    rows = [measure_forward(name, kind) for name in ARCHITECTURES for kind in _KINDS]
    return 0 if report(rows, measure_load(), output) else 1


if __name__ == "__main__":
    sys.exit(main())
