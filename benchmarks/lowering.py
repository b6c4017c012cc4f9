"""Time, memory and size of lowering: ExecuTorch's own Core ML partitioner, ours in its place, and `partitioner.lower`.

    python benchmarks/lowering.py [--quick] [--models NAME ...] [--output docs/benchmarks/lowering.json]

Each measurement runs in a process of its own, after a small program was lowered the same way; the three ways of a model
follow each other. Times are those of the processor and of the clock, from the exported program to the bytes of the
`.pte`, and for the first two ways to the result of `to_edge_transform_and_lower`; the memory is the largest resident
set, less that before.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

IMAGE = (1, 3, 224, 224)
_NARROW = {"num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 1000}
_VIT = {"num_hidden_layers": 12, "image_size": 224, "patch_size": 16}

# Name -> (model class of transformers, arguments of its configuration, shape of the image or length of the text)
MODELS: dict[str, tuple[str, dict[str, object], tuple[int, ...]]] = {
    "bert_mini": (
        "BertModel",
        {**_NARROW, "hidden_size": 96, "intermediate_size": 384},
        (1, 64),
    ),
    "mobilevit_xxs": (
        "MobileViTModel",
        {"hidden_sizes": [64, 80, 96], "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320], "expand_ratio": 2.0},
        (1, 3, 256, 256),
    ),
    "mobilevit": ("MobileViTModel", {}, (1, 3, 256, 256)),
    "mobilenet_v2": ("MobileNetV2Model", {}, IMAGE),
    "vit_tiny": (
        "ViTModel",
        {**_VIT, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
        IMAGE,
    ),
    "resnet18": (
        "ResNetModel",
        {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"},
        IMAGE,
    ),
    "vit_small": (
        "ViTModel",
        {**_VIT, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
        IMAGE,
    ),
    "convnext_tiny": ("ConvNextModel", {}, IMAGE),
    "distilbert": ("DistilBertModel", {}, (1, 128)),
    "vit_base": ("ViTModel", _VIT, IMAGE),
}
KEYS = ("edge (s)", "processor (s)", "clock (s)", "memory (MB)")
QUICK = ("mobilenet_v2", "vit_tiny", "resnet18")
WAYS = ("stock", "ours", "lower")


class First(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[0]


def exported(name: str) -> torch.export.ExportedProgram:
    import transformers

    torch.manual_seed(0)
    class_name, config, shape = MODELS[name]
    model_class = getattr(transformers, class_name)
    model = First(model_class(model_class.config_class(**config))).eval()
    x = torch.randn(shape) if len(shape) == 4 else torch.randint(0, 1000, shape)
    return torch.export.export(model, (x,))


def lowering(way: str, reached: list[float]) -> Callable[[torch.export.ExportedProgram], bytes]:
    """How to lower; notes the processor's time in `reached` when the program is in the edge dialect and lowered."""
    if way == "lower":
        from partitioner import lower

        return lambda program: lower(program).buffer
    if way == "ours":
        from partitioner import CoreMLPartitioner
    else:
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner
    from executorch.exir import to_edge_transform_and_lower

    def through_edge(program: torch.export.ExportedProgram) -> bytes:
        edge = to_edge_transform_and_lower(program, partitioner=[CoreMLPartitioner()])
        reached.append(time.process_time())
        return bytes(edge.to_executorch().buffer)

    return through_edge


def weight_bytes(pte: bytes) -> int:
    from partitioner.format.blob import read_blob
    from partitioner.host.pte.reader import delegate_blobs

    files = [file for blob, _ in delegate_blobs(pte) for file in read_blob(blob).items()]
    return sum(len(content) for path, content in files if path.endswith("weight.bin"))


def measure(name: str, way: str) -> dict[str, float]:
    """Runs in its own process."""
    reached: list[float] = []
    run = lowering(way, reached)
    run(torch.export.export(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), (torch.ones(1, 4),)))
    program = exported(name)
    weights = sum(value.numel() for value in program.state_dict.values() if value.is_floating_point())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, began = time.process_time(), time.perf_counter()
    pte = run(program)
    ended, clock = time.process_time(), time.perf_counter() - began
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "parameters (M)": round(weights / 1e6, 2),
        "edge (s)": round((ended if way == "lower" else reached[-1]) - started, 2),
        "processor (s)": round(ended - started, 2),
        "clock (s)": round(clock, 2),
        "memory (MB)": round(peak),
        "size (MB)": round(len(pte) / 1e6, 2),
        "not weights (%)": round(100 * (len(pte) - weight_bytes(pte)) / len(pte), 2),
    }


def in_process(name: str, way: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", name, way]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def summary(rows: list[dict[str, object]]) -> dict[str, object]:
    """Medians over the models of the ratios to stock."""
    found: dict[str, object] = {"models": len(rows) // len(WAYS)}
    by_way = {way: [row for row in rows if row["way"] == way] for way in WAYS}
    for way in WAYS[1:]:
        for key in KEYS:
            ratios = [ours[key] / theirs[key] for ours, theirs in zip(by_way[way], by_way["stock"], strict=True)]
            found[f"{way} / stock, {key}"] = round(statistics.median(ratios), 2)
    for way in WAYS:
        found[f"{way}, not weights (%)"] = round(statistics.median(row["not weights (%)"] for row in by_way[way]), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--models", nargs="*", choices=MODELS)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    names = arguments.models or (QUICK if arguments.quick else MODELS)
    rows: list[dict[str, object]] = []
    console = Console()
    for name in names:
        for way in WAYS:
            rows.append({"model": name, "way": way, **in_process(name, way)})
            console.print(rows[-1])
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)
    medians = summary(rows)
    console.print(medians)
    if arguments.output:
        report = {"machine": machine(), "medians": medians, "rows": rows}
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
