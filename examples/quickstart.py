"""From a PyTorch model to a checked Core ML `.pte`, on any machine.

Trains a small CNN on scikit-learn's handwritten digits (bundled with it, nothing is downloaded), quantizes weights and
activations to 8 bits with 100 calibration images, lowers the result to Core ML, runs the `.pte` in ExecuTorch's own
runtime with the host delegate, and compares. Exits with an error when the `.pte` does not do what it should.

Run it with `make demo`, or `python examples/quickstart.py --output digits.pte`.
"""

import quiet  # noqa: F401, I001  (first: it silences what the imports below print off macOS)
import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import coremltools as ct
import torch
from coremltools.optimize.torch.quantization import LinearQuantizerConfig, ModuleLinearQuantizerConfig
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import CoreMLQuantizer
from partitioner import CoreMLBackend, CoreMLPartitioner, host

CALIBRATION_IMAGES = 100
EPOCHS = 12
BATCH = 32
LARGEST_ACCURACY_LOSS = 0.5
"""Points of test accuracy that the `.pte` may lose against the float model."""
SMALLEST_AGREEMENT = 99.5
"""Per cent of test images on which `.pte` and converted graph must name the same digit."""


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 8, 8) in [0, 1] and labels (N,), for training and for testing."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_data() -> Digits:
    """Splits the 1,797 images: three quarters to train, one quarter to test."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    cut = len(labels) * 3 // 4
    train, test = order[:cut], order[cut:]
    return Digits(images[train], labels[train], images[test], labels[test])


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def train(model: nn.Module, digits: Digits) -> None:
    """Trains in place; the learning rate falls linearly to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    steps = EPOCHS * (len(digits.train_labels) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(digits.train_labels)).split(BATCH)[: len(digits.train_labels) // BATCH]:
            loss = nn.functional.cross_entropy(model(digits.train_images[batch]), digits.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def quantize(model: nn.Module, digits: Digits) -> nn.Module:
    """Static W8A8: int8 weights per channel, uint8 activations, ranges from the first training images."""
    config = LinearQuantizerConfig(
        global_config=ModuleLinearQuantizerConfig(
            quantization_scheme="symmetric",
            activation_dtype=torch.quint8,
            weight_dtype=torch.qint8,
            weight_per_channel=True,
        )
    )
    calibration = digits.train_images[:CALIBRATION_IMAGES]
    exported = torch.export.export(model, (calibration[:1],)).module()
    prepared = prepare_pt2e(exported, CoreMLQuantizer(config))
    for image in calibration.split(1):
        prepared(image)
    return convert_pt2e(prepared)


def lower(quantized: nn.Module, example: Tensor) -> bytes:
    """Lowers to a `.pte` whose only content is a Core ML delegate; W8A8 runs from iOS 17 on."""
    compile_specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS17)
    program = to_edge_transform_and_lower(
        torch.export.export(quantized, (example,)), partitioner=[CoreMLPartitioner(compile_specs=compile_specs)]
    )
    return bytes(program.to_executorch().buffer)


def save(data: bytes, path: Path) -> None:
    """Writes beside and renames, so that an interruption leaves no half-written file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)


def predict(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(image).argmax(1) for image in images.split(1)])


def predict_pte(path: Path, images: Tensor) -> Tensor:
    """Runs the file in ExecuTorch's runtime, as an app would; only the delegate is ours."""
    host.enable()
    method = Runtime.get().load_program(path).load_method("forward")
    return torch.cat([method.execute([image])[0].argmax(1) for image in images.split(1)])


def constant_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers that a forward pass reads."""
    program = torch.export.export(model, (torch.zeros(1, 1, 8, 8),))
    read = [node for node in program.graph.nodes if node.op == "placeholder" and node.users]
    values = [node.meta["val"] for node in read if node.name not in program.graph_signature.user_inputs]
    return sum(value.numel() * value.element_size() for value in values)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("digits.pte"), help="where to write the program")
    output: Path = parser.parse_args().output
    start = time.perf_counter()
    torch.manual_seed(0)
    digits = load_data()
    model = make_model()
    train(model, digits)
    quantized = quantize(model, digits)
    save(lower(quantized, digits.test_images[:1]), output)

    predictions = {
        "float": predict(model, digits.test_images),
        "converted graph": predict(quantized, digits.test_images),
        str(output): predict_pte(output, digits.test_images),
    }
    sizes = [constant_bytes(model), constant_bytes(quantized), output.stat().st_size]
    converted = predictions["converted graph"]
    table = Table(
        title=f"Handwritten digits, {len(digits.test_labels)} test images",
        caption="bytes: constants read, or file size; agreement: same digit as the converted graph",
        title_justify="left",
        caption_justify="left",
    )
    for column in ("model", "test accuracy", "bytes", "agreement"):
        table.add_column(column, justify="left" if column == "model" else "right")
    accuracy, agreement = {}, {}
    for (name, digit), size in zip(predictions.items(), sizes, strict=True):
        accuracy[name] = 100 * (digit == digits.test_labels).double().mean().item()
        agreement[name] = 100 * (digit == converted).double().mean().item()
        table.add_row(name, f"{accuracy[name]:.2f} %", f"{size:,}", f"{agreement[name]:.2f} %")
    Console().print(table)
    print(f"{time.perf_counter() - start:.0f} s in all")

    loss = accuracy["float"] - accuracy[str(output)]
    if loss > LARGEST_ACCURACY_LOSS or agreement[str(output)] < SMALLEST_AGREEMENT:
        print(
            f"FAILED: {output} loses {loss:.2f} points against float (allowed: {LARGEST_ACCURACY_LOSS}) and agrees "
            f"with the converted graph on {agreement[str(output)]:.2f} % (required: {SMALLEST_AGREEMENT} %).",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
