"""Small real architectures with seeded random weights, for tests of every part; nothing is downloaded."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]
_SETTLING_PASSES = 4
_SETTLING_BATCH = 16


class FirstOutput(nn.Module):
    """Reduces a transformers model to positional tensors in, one tensor out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        output: Tensor = self.model(*inputs)[0]
        return output


def settle(model: nn.Module, inputs: Inputs) -> nn.Module:
    """Gives a randomly initialized model the activations of a trained one.

    Weights get unit gain and batch norms get the statistics of their inputs: without it, values fade to nothing
    after a few layers and every comparison of outputs is empty.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    model.train()
    with torch.no_grad():
        for _ in range(_SETTLING_PASSES):
            model(*(torch.randn(_SETTLING_BATCH, *x.shape[1:]) for x in inputs))
    return model.eval()


def bert() -> tuple[nn.Module, Inputs]:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    mask = torch.ones(1, 16, dtype=torch.long)
    mask[0, 12:] = 0
    return FirstOutput(BertModel(config)).eval(), (torch.randint(0, 100, (1, 16)), mask)


def vit() -> tuple[nn.Module, Inputs]:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )
    return FirstOutput(ViTModel(config)).eval(), (torch.randn(1, 3, 32, 32),)


def mobilevit() -> tuple[nn.Module, Inputs]:
    from transformers import MobileViTConfig, MobileViTModel

    config = MobileViTConfig(
        image_size=64,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 64],
        num_attention_heads=4,
        output_stride=16,
    )
    inputs = (torch.randn(2, 3, 64, 64),)
    return settle(FirstOutput(MobileViTModel(config)), inputs), inputs


def mobilenet_v2() -> tuple[nn.Module, Inputs]:
    from transformers import MobileNetV2Config, MobileNetV2Model

    inputs = (torch.randn(2, 3, 64, 64),)
    return settle(
        FirstOutput(MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.35, image_size=64))), inputs
    ), inputs


def resnet() -> tuple[nn.Module, Inputs]:
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic")
    inputs = (torch.randn(2, 3, 32, 32),)
    return settle(FirstOutput(ResNetModel(config)), inputs), inputs


class SqueezeExcite(nn.Module):
    """Gates channels by a hardsigmoid of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 4, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // 4, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class InvertedResidual(nn.Module):
    """MobileNetV3's block: expand, depthwise, squeeze and excite, project; a residual where shapes allow it."""

    def __init__(self, channels: int, expanded: int, out: int, stride: int) -> None:
        super().__init__()
        self.adds = stride == 1 and channels == out
        self.block = nn.Sequential(
            *(nn.Conv2d(channels, expanded, 1, bias=False), nn.BatchNorm2d(expanded), nn.Hardswish(inplace=True)),
            nn.Conv2d(expanded, expanded, 5, stride, 2, groups=expanded, bias=False),
            *(nn.BatchNorm2d(expanded), nn.Hardswish(inplace=True), SqueezeExcite(expanded)),
            *(nn.Conv2d(expanded, out, 1, bias=False), nn.BatchNorm2d(out)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return x + y if self.adds else y


def mobilenet_v3() -> tuple[nn.Module, Inputs]:
    inputs = (torch.randn(2, 3, 32, 32),)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(inplace=True)),
        InvertedResidual(8, 16, 8, 1),
        InvertedResidual(8, 32, 16, 2),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 32), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(32, 5)),
    )
    return settle(model, inputs), inputs


class UNet(nn.Module):
    """One level down, one level up, with a skip connection by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.middle = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.resize = nn.Upsample(scale_factor=2, mode="nearest")
        self.out = nn.Conv2d(8 + 8 + 16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        deep = self.middle(self.pool(skip))
        output: Tensor = self.out(torch.cat([skip, self.up(deep), self.resize(deep)], dim=1))
        return output


def unet() -> tuple[nn.Module, Inputs]:
    inputs = (torch.randn(2, 3, 32, 32),)
    return settle(UNet(), inputs), inputs


ARCHITECTURES: Mapping[str, Callable[[], tuple[nn.Module, Inputs]]] = MappingProxyType(
    {
        "bert": bert,
        "vit": vit,
        "mobilevit": mobilevit,
        "mobilenet_v2": mobilenet_v2,
        "mobilenet_v3": mobilenet_v3,
        "resnet": resnet,
        "unet": unet,
    }
)


def build(name: str) -> tuple[nn.Module, Inputs]:
    """Returns the architecture `name` in eval mode with example inputs, the same on every call."""
    torch.manual_seed(0)
    return ARCHITECTURES[name]()


def signal_to_noise(reference: Tensor, result: Tensor) -> float:
    """Signal-to-quantization-noise ratio of `result` in decibels; infinite when both are equal."""
    reference, result = reference.detach(), result.detach()
    if torch.equal(reference, result.to(reference.dtype)):
        return float("inf")
    signal = reference.double().square().mean()
    noise = (reference.double() - result.double()).square().mean()
    return float(10 * torch.log10(signal / noise))
