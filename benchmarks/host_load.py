"""Seconds to load and first run one package, and the memory that takes; prints JSON. `host_speed.py` runs this.

    python benchmarks/host_load.py model.mlpackage

A process of its own, because the peak of memory belongs to a process.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

import partitioner.host.ops  # noqa: F401  (measured is the program, not the import of the runtime)
from partitioner import host
from partitioner.host.reading.protos import model_proto

_RESET_PEAK = "5"


def status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def main(path: str) -> None:
    torch.set_num_threads(1)
    model_proto()
    torch.nn.functional.linear(torch.zeros(1, 8), torch.zeros(8, 8))
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    before = status_bytes("VmRSS")
    begin, busy = time.perf_counter(), time.process_time()
    program = host.load(path, policy="float32")
    loaded, worked = time.perf_counter() - begin, time.process_time() - busy
    inputs = {feature.name: np.zeros(feature.shape, np.float32) for feature in program.inputs}
    program.predict(inputs)
    first = time.perf_counter() - begin
    figures = {
        "load": loaded,
        "load CPU": worked,
        "load and first run": first,
        "peak bytes": status_bytes("VmHWM") - before,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1])
