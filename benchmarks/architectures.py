"""MobileNetV2 and ResNet-18 in their published sizes as plain modules, which every tool can trace."""

import torch
from torch import Tensor, nn


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    padding = (kernel - 1) // 2
    return [nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    """Sandler et al. 2018, figure 4."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [*_conv_norm(inputs, hidden, 1), nn.ReLU6()] if expansion != 1 else []
        self.adds = stride == 1 and inputs == outputs
        self.block = nn.Sequential(
            *expand,
            *(*_conv_norm(hidden, hidden, 3, stride, hidden), nn.ReLU6()),
            *_conv_norm(hidden, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(x)
        return x + result if self.adds else result


def mobilenet_v2(classes: int = 1000) -> nn.Module:
    """3.5 M parameters; input (batch, 3, height, width)."""
    layers: list[nn.Module] = [*_conv_norm(3, 32, 3, 2), nn.ReLU6()]
    inputs = 32
    for expansion, outputs, repeats, stride in (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for index in range(repeats):
            layers.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expansion))
            inputs = outputs
    layers += [*_conv_norm(320, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, classes)]
    return nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """He et al. 2016, figure 5, left."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.block = nn.Sequential(*_conv_norm(inputs, outputs, 3, stride), nn.ReLU(), *_conv_norm(outputs, outputs, 3))
        reshapes = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(*_conv_norm(inputs, outputs, 1, stride)) if reshapes else nn.Identity()
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.activation(self.block(x) + self.shortcut(x))
        return result


def resnet18(classes: int = 1000) -> nn.Module:
    """11.7 M parameters; input (batch, 3, height, width)."""
    layers: list[nn.Module] = [*_conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


def settled(model: nn.Module) -> nn.Module:
    """Initializes a model as its authors did, with a fixed seed."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
