"""Time of a training step: float, ours and other tools, interleaved in one run.

    python benchmarks/training.py [--rounds 12] [--clock wall|cpu] [--output docs/benchmarks/training.json]

Batch 16 at 96 x 96, SGD, eager on a CPU; where there is a GPU, also compiled on it, float and ours. Prints tables, and
writes the figures with their date and machine. Fails when a step of ours costs more than 1.3 float steps (1.15 compiled
on a GPU), or as much as that of another tool. The others are coremltools' LinearQuantizer, XNNPACK's quantizer, and
coreai-opt if it is installed (`pip install --no-deps coreai-opt==0.3.0`; it needs nothing that is not here already).
"""

import argparse
import contextlib
import copy
import importlib.util
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
LARGEST_RATIO_ON_GPU = 1.15
BATCH = (16, 3, 96, 96)

Step = Callable[[], None]
MODELS: dict[str, Callable[[], nn.Module]] = {"MobileNetV2": mobilenet_v2, "ResNet-18": resnet18}


_OPEN = contextlib.ExitStack()
"""Contexts of tools that stop observing when theirs ends."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def step_of(model: Callable[[Tensor], Tensor], parameters: list[nn.Parameter], after: Step = lambda: None) -> Step:
    """Returns a whole training step: forward, loss, backward, optimizer, and what the tool wants after it."""
    device = parameters[0].device
    inputs, labels = torch.randn(BATCH, device=device), torch.randint(0, 1000, BATCH[:1], device=device)
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


def coreai(model: nn.Module) -> Step:
    from coreai_opt.quantization import Quantizer

    quantizer = Quantizer(model)
    prepared = quantizer.prepare((torch.randn(BATCH),))
    _OPEN.enter_context(quantizer.training_mode())
    return step_of(prepared, list(prepared.parameters()))


TOOLS: dict[str, Callable[[nn.Module], Step]] = {
    "float": floating,
    "ours": ours,
    "coremltools": coremltools,
    "xnnpack": xnnpack,
    "coreai-opt": coreai,
}


def installed() -> list[str]:
    """Returns the tools that can be measured here."""
    return [tool for tool in TOOLS if tool != "coreai-opt" or importlib.util.find_spec("coreai_opt")]


def timed(steps: dict[str, Step], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Medians over rounds in which every tool takes one step, so that noise meets all alike."""
    times: dict[str, list[float]] = {tool: [] for tool in steps}
    for round_ in range(rounds + 2):
        for tool, step in steps.items():
            start = clock()
            step()
            if round_ > 1:
                times[tool].append(clock() - start)
    return {tool: statistics.median(seconds) for tool, seconds in times.items()}


def row_of(name: str, medians: dict[str, float]) -> dict[str, object]:
    ratios = {f"{tool}_ratio": round(seconds / medians["float"], 3) for tool, seconds in medians.items()}
    return {"model": name, "float_s": round(medians["float"], 4), **ratios}


def compare(name: str, rounds: int, clock: Callable[[], float]) -> dict[str, object]:
    model = settled(MODELS[name]()).train()
    return row_of(name, timed({tool: TOOLS[tool](copy.deepcopy(model)) for tool in installed()}, rounds, clock))


def compare_on_gpu(name: str, rounds: int) -> dict[str, object]:
    """Float and ours under torch.compile; every step ends with waiting for the device."""
    model = settled(MODELS[name]()).train().cuda()
    quantizer = CoreMLQuantizer({"global_config": {"quantization_scheme": "symmetric"}})
    exported = torch.export.export(model, (torch.randn(BATCH, device="cuda"),)).module()
    prepared = prepare_qat_pt2e(exported, quantizer)

    def synchronized(step: Step) -> Step:
        def both() -> None:
            step()
            torch.cuda.synchronize()

        return both

    reference = copy.deepcopy(model)
    steps = {
        "float": synchronized(step_of(torch.compile(reference), list(reference.parameters()))),
        "ours": synchronized(step_of(torch.compile(prepared), list(prepared.parameters()), quantizer.step)),
    }
    return row_of(f"{name}, compiled, GPU", timed(steps, rounds, time.perf_counter))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/training.json"))
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor time is steadier on a busy machine")
    arguments = parser.parse_args()
    rows = [compare(name, arguments.rounds, CLOCKS[arguments.clock]) for name in MODELS]
    on_gpu = [compare_on_gpu(name, arguments.rounds) for name in MODELS] if torch.cuda.is_available() else []
    others = [tool for tool in TOOLS if tool != "float"]
    table = Table("model", "float step", *(f"{tool} / float" for tool in others), title="training")
    for row in [*rows, *on_gpu]:
        table.add_row(
            str(row["model"]), f"{row['float_s']} s", *(str(row.get(f"{tool}_ratio", "-")) for tool in others)
        )
    Console().print(table)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    found = {**machine(), "clock": arguments.clock, "rows": rows, "rows_on_gpu": on_gpu}
    arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    failed = [_fails(row, LARGEST_RATIO) for row in rows] + [_fails(row, LARGEST_RATIO_ON_GPU) for row in on_gpu]
    return int(any(failed))


def _fails(row: dict[str, object], largest: float) -> bool:
    ratios = {key: float(str(value)) for key, value in row.items() if key.endswith("_ratio") and key != "float_ratio"}
    mine = ratios.pop("ours_ratio")
    if mine <= largest and all(mine < other for other in ratios.values()):
        return False
    print(f"FAILED: {row['model']}: a step of ours costs {mine} float steps, allowed is {largest}; others: {ratios}.")
    return True


if __name__ == "__main__":
    sys.exit(main())
