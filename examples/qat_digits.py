"""Quantization-aware training on real digits: what it gives back that calibration alone loses.

Trains the quickstart's CNN on scikit-learn's handwritten digits, then quantizes it in three forms, each by calibration
(PTQ) and by training (QAT), and prints test accuracies, the mean over the seeds. Exits with an error when training does
not recover what it should.

Run it with `python examples/qat_digits.py [--seeds 3]`.
"""

import quiet  # noqa: F401, I001  (first: it silences what the imports below print off macOS)
import argparse
import copy
import sys

import torch
from quickstart import BATCH, Digits, load_data, make_model, train
from rich.console import Console
from rich.table import Table
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import (
    ActivationConfig,
    CoreMLQuantizer,
    LayerConfig,
    LinearQuantizer,
    QuantizerConfig,
    WeightConfig,
    calibrate,
)

CALIBRATION_IMAGES = 100
EPOCHS = 6
MILESTONES = (0, 20, 200, 120)
"""Steps: ranges at once, rounding after half an epoch, batch-norm statistics kept from 120 on, ranges from 200 on."""

FORMS = {
    "W8A8": (LayerConfig(WeightConfig("int8"), ActivationConfig(), milestones=MILESTONES), 0.2),
    "W4A8": (LayerConfig(WeightConfig("int4"), ActivationConfig(), milestones=MILESTONES), 0.7),
    "LUT2": (LayerConfig(WeightConfig("lut2"), None, milestones=MILESTONES), None),
}
"""What layers become, and how many points below the float model training may end."""
LARGEST_UNTRAINED_LOSS = 1.0
"""Points that calibration may lose before training has to do better."""


def accuracy(model: nn.Module, digits: Digits) -> float:
    """Per cent of the test images."""
    with torch.no_grad():
        return 100 * (model(digits.test_images).argmax(1) == digits.test_labels).float().mean().item()


def calibrated(model: nn.Module, layer: LayerConfig, digits: Digits) -> nn.Module:
    config = QuantizerConfig(LayerConfig(layer.weight, layer.activation))
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(model, (digits.train_images[:2],), dynamic_shapes=({0: batch},)).module()
    prepared = prepare_pt2e(exported, CoreMLQuantizer(config))
    if layer.activation is not None:
        calibrate(prepared, digits.train_images[:CALIBRATION_IMAGES].split(10))
    return convert_pt2e(prepared)


def trained(model: nn.Module, layer: LayerConfig, digits: Digits) -> nn.Module:
    quantizer = LinearQuantizer(copy.deepcopy(model), QuantizerConfig(layer))
    prepared = quantizer.prepare(digits.train_images[:1], inplace=True)
    batches = len(digits.train_labels) // BATCH
    optimizer = torch.optim.AdamW(prepared.parameters(), lr=5e-4)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, EPOCHS * batches)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(digits.train_labels)).split(BATCH)[:batches]:
            loss = nn.functional.cross_entropy(prepared(digits.train_images[batch]), digits.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            quantizer.step()
    return quantizer.finalize(inplace=True)


def run(seed: int, digits: Digits) -> dict[str, float]:
    """Returns the accuracies of one seed, by form."""
    torch.manual_seed(seed)
    model = make_model()
    train(model, digits)
    found = {"float": accuracy(model, digits)}
    for name, (layer, _) in FORMS.items():
        found[f"{name} PTQ"] = accuracy(calibrated(model, layer, digits), digits)
        found[f"{name} QAT"] = accuracy(trained(model, layer, digits), digits)
    return found


def problems(mean: dict[str, float]) -> list[str]:
    found = []
    for name, (_, largest_loss) in FORMS.items():
        loss = mean["float"] - mean[f"{name} QAT"]
        if largest_loss is not None and loss > largest_loss:
            found.append(f"{name}: training ends {loss:.2f} points below float, allowed are {largest_loss}.")
        lost = mean["float"] - mean[f"{name} PTQ"]
        if lost > LARGEST_UNTRAINED_LOSS and loss >= lost:
            found.append(f"{name}: calibration loses {lost:.2f} points and training {loss:.2f}.")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    digits, console = load_data(), Console()
    runs = []
    for seed in range(parser.parse_args().seeds):
        runs.append(run(seed, digits))
        console.print(f"seed {seed}: " + ", ".join(f"{name} {value:.2f}" for name, value in runs[-1].items()))
    mean = {name: sum(found[name] for found in runs) / len(runs) for name in runs[0]}
    table = Table("form", "calibrated", "trained", title=f"Digits: test accuracy, per cent; float {mean['float']:.2f}")
    for name in FORMS:
        table.add_row(name, f"{mean[f'{name} PTQ']:.2f}", f"{mean[f'{name} QAT']:.2f}")
    console.print(table)
    found = problems(mean)
    for problem in found:
        console.print(f"[red]FAILED[/]: {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
