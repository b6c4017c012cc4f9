"""Small networks with everything that training treats specially."""

import torch
from torch import Tensor, nn

IMAGE = (4, 3, 16, 16)


class Everything(nn.Module):
    """Batch norms behind convolutions of both kinds, behind a linear layer and alone; dropout; a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.Dropout(0.2))
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8))
        self.lone = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.up_norm = nn.BatchNorm2d(6)
        self.mix = nn.Linear(6, 7)
        self.mix_norm = nn.BatchNorm1d(7)
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.branch(x) + self.lone(x))
        x = torch.sigmoid(self.up_norm(self.up(x))).mean((2, 3))
        result: Tensor = self.head(torch.relu(self.mix_norm(self.mix(x))))
        return result


def everything() -> nn.Module:
    """Returns the network in training mode, the same on every call."""
    torch.manual_seed(0)
    return Everything().train()


def batches(count: int, seed: int = 0) -> list[Tensor]:
    """Returns `count` random batches."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(IMAGE, generator=generator) for _ in range(count)]


def loss_of(output: Tensor, batch: Tensor) -> Tensor:
    """A loss that depends on the input, so that there is something to learn."""
    return (output - batch.mean((2, 3)).repeat(1, 2)[:, : output.shape[1]]).square().mean()
