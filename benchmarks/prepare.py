"""Time of `prepare_pt2e` with our quantizer and with ExecuTorch's, on the same graph, in one run.

    python benchmarks/prepare.py [--output docs/benchmarks/prepare.json]

Prints a table, and writes the figures with their date and machine. Fails when ours takes more than 1/100.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from coremltools.optimize.torch.quantization import LinearQuantizerConfig, ModuleLinearQuantizerConfig
from machine import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
from torchao.quantization.pt2e.quantizer import Quantizer

from coreml_quantizer import CoreMLQuantizer

LARGEST_RATIO = 1 / 100
REPEATS = 7


def mobilenet_v2() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """MobileNetV2 in its published size, 224 x 224."""
    from transformers import MobileNetV2Config, MobileNetV2Model

    return MobileNetV2Model(MobileNetV2Config()), (torch.randn(1, 3, 224, 224),)


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {"MobileNetV2": mobilenet_v2}


def seconds(model: nn.Module, inputs: tuple[Tensor, ...], quantizer: Quantizer) -> float:
    graph: GraphModule = torch.export.export(model, inputs).module()
    start = time.perf_counter()
    prepare_pt2e(graph, quantizer)
    return time.perf_counter() - start


def compare(name: str) -> dict[str, object]:
    """Median of our times and one time of the stock quantizer, which varies little beside the ratio."""
    from executorch.backends.apple.coreml.quantizer import CoreMLQuantizer as StockQuantizer

    model, inputs = MODELS[name]()
    model.eval()
    config = LinearQuantizerConfig(global_config=ModuleLinearQuantizerConfig(quantization_scheme="symmetric"))
    seconds(model, inputs, CoreMLQuantizer(config))
    ours = statistics.median(seconds(model, inputs, CoreMLQuantizer(config)) for _ in range(REPEATS))
    stock = seconds(model, inputs, StockQuantizer(config))
    return {"model": name, "ours_s": round(ours, 4), "stock_s": round(stock, 2), "ratio": round(ours / stock, 5)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/prepare.json"))
    output: Path = parser.parse_args().output
    rows = [compare(name) for name in MODELS]
    table = Table("model", "ours", "stock", "stock / ours", title="prepare_pt2e")
    for row in rows:
        table.add_row(str(row["model"]), f"{row['ours_s']} s", f"{row['stock_s']} s", f"{1 / float(row['ratio']):.0f}")
    Console().print(table)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({**machine(), "rows": rows}, indent=2) + "\n")
    worst = max(float(str(row["ratio"])) for row in rows)
    if worst > LARGEST_RATIO:
        print(f"FAILED: ours takes {worst:.4f} of the stock quantizer's time, allowed is {LARGEST_RATIO}.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
