"""Networks that ExecuTorch's own quantizer can prepare, with random weights."""

from collections.abc import Callable

import torch
from helpers import models
from helpers.against_stock import Model
from torch import Tensor, nn

IMAGES = 4


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Hardswish())
        self.gate = nn.Sequential(nn.Conv2d(16, 16, 1), nn.Sigmoid())
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = y + self.body(y)
        return self.head((y * self.gate(y)).mean((2, 3)))


class _InvertedResidual(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        inner = 4 * channels_in
        self.adds = stride == 1 and channels_in == channels_out
        self.body = nn.Sequential(
            *_convolution(channels_in, inner, 1), nn.ReLU6(),
            *_convolution(inner, inner, 3, stride=stride, padding=1, groups=inner), nn.ReLU6(),
            *_convolution(inner, channels_out, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def _convolution(channels_in: int, channels_out: int, size: int, **options: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels_in, channels_out, size, bias=False, **options), nn.BatchNorm2d(channels_out)


def _settled(model: nn.Module, channels: int = 3, size: int = 16) -> Model:
    inputs = (torch.randn(IMAGES, channels, size, size),)
    return models.settle(model, inputs), inputs


def residual() -> Model:
    return _settled(_Residual())


def separable() -> Model:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 16, 3, groups=16),
        nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 32, 1), nn.Flatten(), nn.Linear(800, 10),
    )  # fmt: skip
    return _settled(model)


def mobilenet() -> Model:
    model = nn.Sequential(
        *_convolution(3, 8, 3, stride=2, padding=1), nn.ReLU6(),
        _InvertedResidual(8, 16, 2), _InvertedResidual(16, 16, 1), _InvertedResidual(16, 16, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    return _settled(model, size=32)


def convolutional() -> Model:
    """As LeNet-5: tanh behind convolutions, and average pools."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(8, 16, 5), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(256, 64), nn.Tanh(), nn.Linear(64, 10),
    )  # fmt: skip
    return model.eval(), (torch.randn(IMAGES, 1, 28, 28),)


def perceptron_with_tanh() -> Model:
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8))
    return model.eval(), (torch.randn(64, 32),)


def perceptron_with_sigmoid() -> Model:
    model = nn.Sequential(nn.Linear(32, 64), nn.Sigmoid(), nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 8))
    return model.eval(), (torch.randn(64, 32),)


NETWORKS: tuple[Callable[[], Model], ...] = (
    residual,
    separable,
    mobilenet,
    convolutional,
    perceptron_with_tanh,
    perceptron_with_sigmoid,
)
