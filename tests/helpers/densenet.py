"""DenseNet in any size: every layer starts with a batch norm of its own, behind a concatenation."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

DENSENET_121 = (6, 12, 24, 16)
_WIDENING = 4


class DenseLayer(nn.Module):
    """Batch norm, ReLU and a convolution, twice; its output is concatenated to its input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.narrow = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Conv2d(channels, _WIDENING * growth, 1, bias=False)
        )
        self.grow = nn.Sequential(
            nn.BatchNorm2d(_WIDENING * growth),
            nn.ReLU(inplace=True),
            nn.Conv2d(_WIDENING * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.grow(self.narrow(x))], 1)


class DenseNet(nn.Module):
    """Source: Huang et al. 2017, table 1. The defaults are DenseNet-121."""

    def __init__(
        self, layers: Sequence[int] = DENSENET_121, growth: int = 32, stem: int = 64, classes: int = 10
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, stem, 7, 2, 3, bias=False), nn.BatchNorm2d(stem), nn.ReLU()]
        parts.append(nn.MaxPool2d(3, 2, 1))
        channels = stem
        for index, count in enumerate(layers):
            parts += [DenseLayer(channels + growth * layer, growth) for layer in range(count)]
            channels += growth * count
            if index + 1 < len(layers):
                transition = (nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False))
                parts += [*transition, nn.AvgPool2d(2)]
                channels //= 2
        self.features = nn.Sequential(*parts, nn.BatchNorm2d(channels), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.features(x))
        return y
