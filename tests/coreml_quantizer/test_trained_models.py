"""Trained models keep their accuracy: a sentence encoder and a classifier of digits."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import minilm
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import CoreMLQuantizer, calibrate, presets

SENTENCES = 200


@pytest.fixture(scope="module")
def encoder() -> tuple[nn.Module, list[minilm.Batch], list[minilm.Batch], Tensor]:
    model, calibration, sentences = minilm.load()
    return model, calibration, sentences, minilm.embed(model, sentences)


@pytest.mark.parametrize(
    ("config", "least"),
    [("w8", 0.9995), (None, 0.90)],
    ids=["W8", "W8A8"],
)
def test_sentence_embeddings_keep_their_direction(
    encoder: tuple[nn.Module, list, list, Tensor], config: object, least: float
) -> None:
    model, calibration, sentences, expected = encoder
    assert len(expected) == SENTENCES
    prepared = prepare_pt2e(torch.export.export(model, calibration[0]).module(), CoreMLQuantizer(config))
    calibrate(prepared, calibration)
    found = minilm.embed(convert_pt2e(prepared), sentences)
    assert float(F.cosine_similarity(expected, found).mean()) >= least


class Digits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A trained classifier, images to calibrate on, and held-out images with their labels."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    torch.manual_seed(0)
    order = torch.randperm(len(images))
    train, test = order[:1200], order[1200:]
    model = Digits()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(8):
        for batch in train.split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval(), images[train[:256]], images[test], labels[test]


BITS = {"w8a8": 8, "w8a8_symmetric": 8, "w8": 8, "w4": 4, "w4_block32": 4, "lut8": 8, "lut6": 6, "lut4": 4}


@pytest.mark.parametrize("preset", BITS)
def test_digits_are_still_recognized(digits: tuple[nn.Module, Tensor, Tensor, Tensor], preset: str) -> None:
    model, calibration, images, labels = digits
    with torch.no_grad():
        logits = model(images)
        example = (images[:64],)
        dynamic = ({0: torch.export.Dim("batch", max=1024)},)
        graph = torch.export.export(model, example, dynamic_shapes=dynamic).module()
        prepared = prepare_pt2e(graph, CoreMLQuantizer(presets.named(preset)))
        calibrate(prepared, calibration.split(64))
        found = convert_pt2e(prepared)(images)
    right = (logits.argmax(1) == labels).double().mean()
    assert right > 0.97, "the float model is trained"
    # Six decibels a bit; the constant is what eight bits lose to the ends of the range and to three layers.
    assert -20 * math.log10(float((found - logits).norm() / logits.norm())) >= 6 * BITS[preset] - 18
    # Of 597 images only those that the float model itself is unsure of may change.
    assert (found.argmax(1) == logits.argmax(1)).double().mean() >= (0.99 if BITS[preset] >= 6 else 0.98)
