"""Models whose quantizers are compared with those that coremltools places: all that torch.fx can trace too."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv_norm(inputs: int, outputs: int, kernel: int, groups: int = 1, **more: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False, **more),
        nn.BatchNorm2d(outputs),
    ]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_norm(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.branch = nn.Sequential(*_conv_norm(8, 8, 3), nn.ReLU(), *_conv_norm(8, 8, 3))
        self.shortcut = nn.Sequential(*_conv_norm(8, 8, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.branch(x) + self.shortcut(x))
        result: Tensor = self.head(torch.flatten(self.pool(x), 1))
        return result


class Inverted(nn.Module):
    """As in MobileNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_norm(3, 8, 3, stride=2), nn.ReLU6())
        self.block = nn.Sequential(
            *(*_conv_norm(8, 16, 1), nn.ReLU6()), *(*_conv_norm(16, 16, 3, 16), nn.ReLU6()), *_conv_norm(16, 8, 1)
        )
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class Branches(nn.Module):
    """Concatenation, pools, and activations with a fixed range."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Sigmoid())
        self.pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(3, 4, 1), nn.Tanh())
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.norm = nn.Sequential(nn.BatchNorm2d(6), nn.Hardswish())

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.narrow(x), self.wide(x), self.pooled(x)], 1)
        result: Tensor = self.norm(self.up(self.pool(x)))
        return result


class Gated(nn.Module):
    """Products, and matrix products of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Sequential(nn.Linear(12, 16), nn.GELU())
        self.value, self.gate = nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 16), nn.Sigmoid())
        self.softmax = nn.Softmax(-1)
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        x = self.value(x) * self.gate(x)
        x = torch.matmul(self.softmax(torch.matmul(x, x.transpose(1, 2))), x)
        result: Tensor = self.out(x)
        return result


class Functional(nn.Module):
    """Activations as functions, and pools that are methods."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = torch.sigmoid(self.second(x)) * x - F.gelu(x)
        result: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return result


def _mlp() -> nn.Module:
    layers = (nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 16))
    return nn.Sequential(*layers, nn.LeakyReLU(), nn.Linear(16, 5))


def _plain() -> nn.Module:
    return nn.Sequential(
        *(*_conv_norm(3, 8, 3), nn.ReLU(), *_conv_norm(8, 8, 3, 2), nn.ReLU6()),
        *(nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.Hardswish(), nn.Conv2d(8, 4, 1), nn.SiLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), nn.Softmax(-1)),
    )


IMAGE = (4, 3, 16, 16)

MODELS: Mapping[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = MappingProxyType(
    {
        "plain": lambda: (_plain(), IMAGE),
        "residual": lambda: (Residual(), IMAGE),
        "mlp": lambda: (_mlp(), (4, 12)),
        "inverted": lambda: (Inverted(), IMAGE),
        "branches": lambda: (Branches(), IMAGE),
        "functional": lambda: (Functional(), IMAGE),
        "gated": lambda: (Gated(), (4, 6, 12)),
    }
)
"""Each with the shape of its input."""
