"""Time of `prepare_pt2e` with our quantizer and with ExecuTorch's, on the same graph, in one run.

    python benchmarks/prepare.py [--output docs/benchmarks/prepare.json]

Prints a table, and writes the figures with their date and machine. Times are CPU times of this process. "Folded first"
is `fold_batch_norms` and `prepare_pt2e` together; "torchao folds" is the part of `prepare_pt2e` that folds batch norms
before any quantizer is asked, in time quadratic in their number, whatever the quantizer.

Fails when `prepare_pt2e`, alone or behind `fold_batch_norms`, takes more than 1/100 of the stock quantizer's time (if
torchao's folding takes that much by itself, all the rest must not), when ten name entries make ours more than 1.5 times
as slow, or when converting DenseNet-121, half of whose batch norms fold into nothing, takes more than 3 s.
"""

import argparse
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from coremltools.optimize.torch.quantization import LinearQuantizerConfig, ModuleLinearQuantizerConfig
from machine import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import Quantizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.densenet import DenseNet

from coreml_quantizer import CoreMLQuantizer, fold_batch_norms

LARGEST_RATIO = 1 / 100
LARGEST_COST_OF_NAMES = 1.5
LONGEST_CONVERSION_S = {"DenseNet-121": 3.0}
"""Other models convert as fast as their weights can be read."""
NAMES = 10
REPEATS = 5


def mobilenet_v2() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """MobileNetV2 in its published size, 224 x 224."""
    from transformers import MobileNetV2Config, MobileNetV2Model

    return MobileNetV2Model(MobileNetV2Config()), (torch.randn(1, 3, 224, 224),)


def vit_b() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """ViT-B/16 in its published size, 224 x 224."""
    from transformers import ViTConfig, ViTModel

    return ViTModel(ViTConfig()), (torch.randn(1, 3, 224, 224),)


def densenet_121() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """DenseNet-121 in its published size, 224 x 224."""
    return DenseNet(), (torch.randn(1, 3, 224, 224),)


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "MobileNetV2": mobilenet_v2,
    "ViT-B/16": vit_b,
    "DenseNet-121": densenet_121,
}


def exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> GraphModule:
    graph: GraphModule = torch.export.export(model, inputs).module()
    gc.collect()
    return graph


def seconds(graph: GraphModule, quantizer: Quantizer) -> float:
    start = time.process_time()
    prepare_pt2e(graph, quantizer)
    return time.process_time() - start


def seconds_folded_first(graph: GraphModule, quantizer: Quantizer) -> float:
    start = time.process_time()
    prepare_pt2e(fold_batch_norms(graph), quantizer)
    return time.process_time() - start


class _Clock(CoreMLQuantizer):
    """Notes when torchao first asks it for anything."""

    asked = math.nan

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        self.asked = time.process_time()
        return super().transform_for_annotation(model)


def seconds_in_all_and_before_asking(graph: GraphModule, config: LinearQuantizerConfig) -> tuple[float, float]:
    clock = _Clock(config)
    start = time.process_time()
    prepare_pt2e(graph, clock)
    return time.process_time() - start, clock.asked - start


def median(measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(REPEATS))


def conversion_seconds(model: nn.Module, inputs: tuple[Tensor, ...], config: LinearQuantizerConfig) -> float:
    prepared = prepare_pt2e(torch.export.export(model, inputs).module(), CoreMLQuantizer(config))
    with torch.no_grad():
        prepared(*inputs)
    start = time.process_time()
    convert_pt2e(prepared)
    return time.process_time() - start


def symmetric(names: Iterable[str] = ()) -> LinearQuantizerConfig:
    other = ModuleLinearQuantizerConfig(activation_observer="min_max")
    return LinearQuantizerConfig(
        global_config=ModuleLinearQuantizerConfig(), module_name_configs=dict.fromkeys(names, other)
    )


def compare(name: str) -> dict[str, object]:
    """Median of our times and one time of the stock quantizer, which varies little beside the ratio."""
    from executorch.backends.apple.coreml.quantizer import CoreMLQuantizer as StockQuantizer

    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    model.eval()
    layers = [path for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]

    def graph() -> GraphModule:
        return exported(model, inputs)

    seconds(graph(), CoreMLQuantizer(symmetric()))
    runs = [seconds_in_all_and_before_asking(graph(), symmetric()) for _ in range(REPEATS)]
    ours, folding = (statistics.median(column) for column in zip(*runs, strict=True))
    folded_first = median(lambda: seconds_folded_first(graph(), CoreMLQuantizer(symmetric())))
    named = median(lambda: seconds(graph(), CoreMLQuantizer(symmetric(layers[:NAMES]))))
    converting = conversion_seconds(model, inputs, symmetric())
    stock = seconds(graph(), StockQuantizer(symmetric()))
    return {
        "model": name,
        "ours_s": round(ours, 4),
        "torchao_folds_s": round(folding, 4),
        "folded_first_s": round(folded_first, 4),
        "ten_names_s": round(named, 4),
        "convert_s": round(converting, 3),
        "stock_s": round(stock, 2),
        "ratio": round(ours / stock, 5),
        "folded_first_ratio": round(folded_first / stock, 5),
    }


def failures(row: dict[str, object]) -> list[str]:
    """What one row breaks, in words."""
    keys = ("ours_s", "torchao_folds_s", "folded_first_s", "ten_names_s", "convert_s", "stock_s")
    ours, folding, folded_first, named, converting, stock = (float(str(row[key])) for key in keys)
    found = []
    most = LARGEST_RATIO * stock
    plain = {"ours": ours} if folding <= most else {"all but torchao's folding": ours - folding}
    for what, took in {"folding first": folded_first, **plain}.items():
        if took > most:
            found.append(
                f"{row['model']}: {what} takes {took / stock:.4f} of the stock quantizer's time, "
                f"allowed is {LARGEST_RATIO}."
            )
    if named > LARGEST_COST_OF_NAMES * ours:
        found.append(f"{row['model']}: {NAMES} names take {named / ours:.2f} times as long as none.")
    longest = LONGEST_CONVERSION_S.get(str(row["model"]), math.inf)
    if converting > longest:
        found.append(f"{row['model']}: converting takes {converting:.1f} s, allowed is {longest}.")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/prepare.json"))
    output: Path = parser.parse_args().output
    rows = [compare(name) for name in MODELS]
    seconds_of = {
        "ours": "ours_s",
        "torchao folds": "torchao_folds_s",
        "folded first": "folded_first_s",
        "ten names": "ten_names_s",
        "convert": "convert_s",
        "stock": "stock_s",
    }
    times_faster = {"stock / ours": "ratio", "stock / folded first": "folded_first_ratio"}
    table = Table("model", *seconds_of, *times_faster, title="Seconds of prepare_pt2e")
    for row in rows:
        times = [str(row[key]) for key in seconds_of.values()]
        table.add_row(str(row["model"]), *times, *(f"{1 / float(str(row[key])):.0f}" for key in times_faster.values()))
    Console().print(table)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({**machine(), "rows": rows}, indent=2) + "\n")
    problems = [problem for row in rows for problem in failures(row)]
    for problem in problems:
        print(f"FAILED: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
