"""Which layers of a digits classifier must not go to 2 bits, found by quantizing them one at a time.

Trains the quickstart's CNN on scikit-learn's handwritten digits, puts its weights into tables of four values without
training, which costs most of the accuracy, measures the accuracy with each layer quantized alone, and gives the layers
that cost most a table of 64 values instead. Exits with an error when that does not bring the accuracy back.

Run it with `python examples/sensitivity.py`.
"""

import quiet  # noqa: F401, I001  (first: it silences what the imports below print off macOS)
import sys

import torch
from qat_digits import accuracy
from quickstart import Digits, load_data, make_model, train
from torch import nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import CoreMLQuantizer, LayerConfig, QuantizerConfig, WeightConfig, analyze_sensitivity

COARSE = LayerConfig(WeightConfig("lut2"), activation=None)
FINE = LayerConfig(WeightConfig("lut6"), activation=None)
LARGEST_LOSS = 1.0
"""Points below the float model at which layers stop getting finer tables."""
MOST_FINE_LAYERS = 3


def prepared(model: nn.Module, config: QuantizerConfig, digits: Digits) -> GraphModule:
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(model, (digits.train_images[:2],), dynamic_shapes=({0: batch},)).module()
    return prepare_pt2e(exported, CoreMLQuantizer(config))


def main() -> int:
    torch.manual_seed(0)
    digits = load_data()
    model = make_model()
    train(model, digits)
    # Layers are chosen on images that the test does not have.
    held_out = Digits(digits.train_images, digits.train_labels, digits.train_images, digits.train_labels)
    found = analyze_sensitivity(
        prepared(model, QuantizerConfig(COARSE), digits), evaluate=lambda graph: accuracy(graph, held_out)
    )
    print("Accuracy on training images in per cent")
    print(found.to_text())

    needed = accuracy(model, digits) - LARGEST_LOSS
    for count in range(MOST_FINE_LAYERS + 1):
        modules = dict.fromkeys(found.most_sensitive(count), FINE)
        reached = accuracy(convert_pt2e(prepared(model, QuantizerConfig(COARSE, modules=modules), digits)), digits)
        print(f"{count} layers with 6 bits, the others with 2: {reached:.2f} % of test images")
        if reached >= needed:
            return 0
    print(f"FAILED: {needed:.2f} % are needed.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
