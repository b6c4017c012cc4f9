"""Real architectures trained on scikit-learn's handwritten digits: weights that do something, made in seconds."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

_TRAINING_IMAGES = 1347
_CALIBRATION_IMAGES = 200


@dataclass(frozen=True)
class Trained:
    """A classifier in eval mode, float32 images `(batch, 3, size, size)` it was not trained on, and their labels."""

    model: nn.Module
    calibration: Tensor
    images: Tensor
    labels: Tensor


class Logits(nn.Module):
    """Reduces a transformers classifier to images in, logits `(batch, classes)` out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images).logits
        return logits


def digits(size: int) -> tuple[Tensor, Tensor]:
    """Returns the 1797 digits as float32 `(1797, 3, size, size)` in -1..1, enlarged, and their labels."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    enlarged = F.interpolate(images, size=size, mode="bilinear")
    return enlarged.expand(-1, 3, -1, -1).contiguous(), torch.tensor(data.target)


def train(model: nn.Module, size: int, steps: int, learning_rate: float) -> Trained:
    """Trains on three quarters of the digits with AdamW under one learning-rate cycle."""
    images, labels = digits(size)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps)
    model.train()
    for _ in range(steps):
        batch = torch.randint(0, _TRAINING_IMAGES, (32,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    model.eval().requires_grad_(False)
    held_out = slice(_TRAINING_IMAGES, None)
    return Trained(model, images[:_CALIBRATION_IMAGES], images[held_out], labels[held_out])


def mobilevit() -> Trained:
    """A MobileViT of 32 x 32 images, which needs unit-gain weights to train at all in so few steps."""
    from transformers import MobileViTConfig, MobileViTForImageClassification

    torch.manual_seed(0)
    config = MobileViTConfig(
        image_size=32,
        hidden_sizes=[32, 48, 64],
        neck_hidden_sizes=[16, 16, 24, 32, 48, 64, 128],
        num_attention_heads=4,
        num_labels=10,
    )
    model = Logits(MobileViTForImageClassification(config))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return train(model, size=32, steps=300, learning_rate=5e-3)
