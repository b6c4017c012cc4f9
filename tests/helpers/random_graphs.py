"""Random networks of supported operators, all on tensors of one shape, so that any operator can follow any other."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

CHANNELS, SIZE = 4, 6
SHAPE = (2, CHANNELS, SIZE, SIZE)


class Layers(nn.Module):
    """The modules that a step may need; unused ones are not exported."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.same = nn.Conv2d(CHANNELS, CHANNELS, 3, padding="same", groups=2, bias=False)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.transposed = nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, padding=1)
        self.linear = nn.Linear(CHANNELS, CHANNELS)
        self.join = nn.Conv2d(2 * CHANNELS, CHANNELS, 1)
        self.token = nn.Parameter(torch.rand(CHANNELS, 1, 1) + 0.5)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)


Step = Callable[[Layers, Tensor, Tensor], Tensor]


def _rows(x: Tensor) -> Tensor:
    return x.flatten(2)


STEPS: Mapping[str, Step] = MappingProxyType(
    {
        "conv": lambda m, x, y: m.conv(x),
        "conv-norm-relu": lambda m, x, y: F.relu(m.norm(m.conv(x))),
        "conv-same-silu": lambda m, x, y: F.silu(m.same(x)),
        "conv-transpose": lambda m, x, y: m.transposed(x),
        "pad-conv": lambda m, x, y: F.conv2d(F.pad(x, (1, 1, 1, 1)), m.conv.weight, m.conv.bias),
        "lone-norm-relu": lambda m, x, y: F.relu(m.norm(x)),
        "linear": lambda m, x, y: m.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        "relu": lambda m, x, y: x.relu(),
        "relu6": lambda m, x, y: F.relu6(x),
        "leaky": lambda m, x, y: F.leaky_relu(x, 0.125),
        "gelu": lambda m, x, y: F.gelu(x),
        "elu": lambda m, x, y: F.elu(x),
        "sigmoid": lambda m, x, y: x.sigmoid(),
        "tanh": lambda m, x, y: x.tanh(),
        "clamp": lambda m, x, y: x.clamp(-0.5, 1.0),
        "softplus": lambda m, x, y: F.softplus(x),
        "add": lambda m, x, y: x + y,
        "add-relu": lambda m, x, y: F.relu(x + y),
        "sub": lambda m, x, y: x - y,
        "mul": lambda m, x, y: x * y,
        "gate": lambda m, x, y: x * m.conv(y).sigmoid(),
        "scale": lambda m, x, y: x * m.token + 0.25,
        "div": lambda m, x, y: x / 4.0,
        "rsub": lambda m, x, y: 1.0 - x,
        "cat": lambda m, x, y: m.join(torch.cat([x, y], 1)),
        "split": lambda m, x, y: torch.cat(x.chunk(2, 1)[::-1], 1),
        "max-pool": lambda m, x, y: F.max_pool2d(x, 3, 1, 1),
        "avg-pool": lambda m, x, y: F.avg_pool2d(x, 3, 1, 1),
        "nearest": lambda m, x, y: F.max_pool2d(F.interpolate(x, scale_factor=2.0), 2),
        "bilinear": lambda m, x, y: F.avg_pool2d(F.interpolate(x, scale_factor=2.0, mode="bilinear"), 2),
        "mean": lambda m, x, y: x - x.mean((2, 3), keepdim=True),
        "matmul": lambda m, x, y: (_rows(x).transpose(1, 2) @ _rows(y) / 16.0).mean(2).view(2, 1, 6, 6) + x,
        "attention": lambda m, x, y: (torch.softmax(_rows(x) @ _rows(y).mT / 8.0, -1) @ _rows(x)).view(SHAPE),
        "einsum": lambda m, x, y: torch.einsum("bchw,dc->bdhw", x, m.linear.weight),
    }
)


class Drawn(nn.Module):
    """Applies steps; each reads the newest value and one that the draw chose."""

    def __init__(self, steps: Sequence[tuple[str, int]], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.steps = tuple(steps)
        self.layers = nn.ModuleList(Layers() for _ in steps)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for (name, other), layers in zip(self.steps, self.layers, strict=True):
            values.append(STEPS[name](layers, values[-1], values[other % len(values)]))  # type: ignore[arg-type]
        return values[-1]


def networks(largest: int) -> st.SearchStrategy[Drawn]:
    """Networks that begin with a product, so that there is something to quantize."""
    first = st.sampled_from([(name, 0) for name in ("conv", "conv-norm-relu", "conv-same-silu", "linear")])
    rest = st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 7)), min_size=1, max_size=largest - 1)
    return st.builds(lambda head, tail, seed: Drawn([head, *tail], seed), first, rest, st.integers(0, 2**16))
