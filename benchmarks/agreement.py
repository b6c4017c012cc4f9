"""How well the `.pte` agrees with the converted graph on the host, for every test architecture.

    python benchmarks/agreement.py [--output docs/benchmarks/agreement.json]

Signal-to-noise ratios in decibels: of the converted graph against the float model (what quantization costs), and of the
`.pte` against the converted graph under each precision policy (what lowering costs).
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from machine import machine
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.models import ARCHITECTURES, build, signal_to_noise
from helpers.pipeline import W8, W8A8, lower

from partitioner import host

POLICIES = ("float32", "storage16")


def measure(name: str, config: object) -> dict[str, object]:
    model, inputs = build(name)
    lowered = lower(model, inputs, config)
    with torch.no_grad():
        expected = lowered.converted(*inputs)
        row: dict[str, object] = {
            "model": name,
            "quantization": "W8A8" if config is W8A8 else "W8",
            "delegates": lowered.delegates,
            "converted / float": round(signal_to_noise(model(*inputs), expected), 1),
        }
    for policy in POLICIES:
        row[policy] = round(signal_to_noise(expected, host.run(lowered.pte, *inputs, policy=policy)[0]), 1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/agreement.json"))
    output: Path = parser.parse_args().output
    rows = [measure(name, config) for name in ARCHITECTURES for config in (W8A8, W8)]
    table = Table(*rows[0], title="dB")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({**machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
