"""Time of a training step: float, ours, coremltools' LinearQuantizer and XNNPACK's quantizer, interleaved in one run.

    python benchmarks/training.py [--rounds 12] [--output docs/benchmarks/training.json]

Batch 16 at 96 x 96, eager, SGD. Prints a table, and writes the figures with their date and machine. Fails when a step
of ours costs more than 1.3 float steps, or more than that of another tool.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from architectures import mobilenet_v2, resnet18, settled
from machine import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

from coreml_quantizer import CoreMLQuantizer

LARGEST_RATIO = 1.3
BATCH = (16, 3, 96, 96)

Step = Callable[[], None]
MODELS: dict[str, Callable[[], nn.Module]] = {"MobileNetV2": mobilenet_v2, "ResNet-18": resnet18}


def step_of(model: Callable[[Tensor], Tensor], parameters: list[nn.Parameter], after: Step = lambda: None) -> Step:
    """Returns a whole training step: forward, loss, backward, optimizer, and what the tool wants after it."""
    inputs, labels = torch.randn(BATCH), torch.randint(0, 1000, BATCH[:1])
    optimizer = torch.optim.SGD(parameters, lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        after()

    return step


def floating(model: nn.Module) -> Step:
    return step_of(model, list(model.parameters()))


def ours(model: nn.Module) -> Step:
    quantizer = CoreMLQuantizer({"global_config": {"quantization_scheme": "symmetric"}})
    prepared = prepare_qat_pt2e(torch.export.export(model, (torch.randn(BATCH),)).module(), quantizer)
    return step_of(prepared, list(prepared.parameters()), quantizer.step)


def coremltools(model: nn.Module) -> Step:
    from coremltools.optimize.torch.quantization import LinearQuantizer, LinearQuantizerConfig

    config = LinearQuantizerConfig.from_dict({"global_config": {"quantization_scheme": "symmetric"}})
    quantizer = LinearQuantizer(model, config)
    prepared = quantizer.prepare((torch.randn(BATCH),))
    prepared.train()
    return step_of(prepared, list(prepared.parameters()), quantizer.step)


def xnnpack(model: nn.Module) -> Step:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_qat=True))
    prepared = prepare_qat_pt2e(torch.export.export(model, (torch.randn(BATCH),)).module(), quantizer)
    return step_of(prepared, list(prepared.parameters()))


TOOLS: dict[str, Callable[[nn.Module], Step]] = {
    "float": floating,
    "ours": ours,
    "coremltools": coremltools,
    "xnnpack": xnnpack,
}


def compare(name: str, rounds: int) -> dict[str, object]:
    """Medians over rounds in which every tool takes one step, so that noise meets all alike."""
    model = settled(MODELS[name]()).train()
    steps = {tool: make(copy.deepcopy(model)) for tool, make in TOOLS.items()}
    times: dict[str, list[float]] = {tool: [] for tool in steps}
    for round_ in range(rounds + 1):
        for tool, step in steps.items():
            start = time.perf_counter()
            step()
            if round_:
                times[tool].append(time.perf_counter() - start)
    medians = {tool: statistics.median(seconds) for tool, seconds in times.items()}
    ratios = {f"{tool}_ratio": round(seconds / medians["float"], 3) for tool, seconds in medians.items()}
    return {"model": name, "float_s": round(medians["float"], 4), **ratios}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/training.json"))
    arguments = parser.parse_args()
    rows = [compare(name, arguments.rounds) for name in MODELS]
    table = Table("model", "float step", *(f"{tool} / float" for tool in TOOLS if tool != "float"), title="training")
    for row in rows:
        ratios = (f"{row[f'{tool}_ratio']}" for tool in TOOLS if tool != "float")
        table.add_row(str(row["model"]), f"{row['float_s']} s", *ratios)
    Console().print(table)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({**machine(), "rows": rows}, indent=2) + "\n")
    return int(any(_fails(row) for row in rows))


def _fails(row: dict[str, object]) -> bool:
    mine = float(str(row["ours_ratio"]))
    others = [float(str(row[f"{tool}_ratio"])) for tool in TOOLS if tool not in ("float", "ours")]
    if mine <= LARGEST_RATIO and mine < min(others):
        return False
    print(f"FAILED: {row['model']}: a step of ours costs {mine} float steps, allowed is {LARGEST_RATIO}.")
    return True


if __name__ == "__main__":
    sys.exit(main())
