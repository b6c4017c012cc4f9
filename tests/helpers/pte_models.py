"""Small `.pte` programs: what their methods compute is known, so that results can be compared."""

from dataclasses import dataclass
from functools import cache

import torch
from executorch.exir import to_edge_transform_and_lower
from torch import nn
from torch.export import Dim, export

from partitioner import CoreMLBackend, CoreMLPartitioner


@dataclass(frozen=True)
class Case:
    """A program, its eager model by method, and inputs that fit every method."""

    pte: bytes
    models: dict[str, nn.Module]
    inputs: tuple[torch.Tensor | None, ...]


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x, y):
        return torch.relu(self.linear(x)) + y, x * 2


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class ConvAndSum(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return torch.cat([self.conv(x), x], dim=1).sum(dim=(2, 3))


class Scalar(nn.Module):
    def forward(self, x):
        return x.sum()


class Accumulator(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x):
        self.total.add_(x)
        return self.total * 1.0


class Integers(nn.Module):
    def forward(self, x, index):
        return x + index, index.to(torch.int32)


def _target(name):
    import coremltools as ct

    return CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=getattr(ct.target, name),
        compute_precision=ct.precision.FLOAT32,
    )


def _lower(models, inputs, dynamic_shapes=None, target="iOS17", **options):
    shapes = dynamic_shapes
    programs = {
        name: export(model.eval(), inputs, dynamic_shapes=shapes, strict=False) for name, model in models.items()
    }
    partitioner = CoreMLPartitioner(compile_specs=_target(target), **options)
    lowered = to_edge_transform_and_lower(programs, partitioner={name: [partitioner] for name in programs})
    return Case(lowered.to_executorch().buffer, models, inputs)


@cache
def two_outputs() -> Case:
    torch.manual_seed(0)
    return _lower({"forward": TwoOutputs()}, (torch.randn(2, 8), torch.randn(2, 4)))


@cache
def split() -> Case:
    """Two delegates around a portable kernel."""
    torch.manual_seed(1)
    return _lower(
        {"forward": TwoOutputs()},
        (torch.randn(2, 8), torch.randn(2, 4)),
        skip_ops_for_coreml_delegation=["aten.relu.default"],
    )


@cache
def portable_convolution() -> Case:
    """No delegate: kernels with constants, integer lists and tensor lists."""
    torch.manual_seed(2)
    model, inputs = ConvAndSum().eval(), (torch.randn(1, 3, 6, 6),)
    lowered = to_edge_transform_and_lower(export(model, inputs, strict=False))
    return Case(lowered.to_executorch().buffer, {"forward": model}, inputs)


@cache
def two_methods() -> Case:
    torch.manual_seed(3)
    return _lower({"double": Scaled(2.0), "triple": Scaled(3.0)}, (torch.randn(3, 5),))


@cache
def shared_methods() -> Case:
    """Methods that refer to functions of one model in the program's named data."""
    torch.manual_seed(9)
    layer = nn.Linear(5, 5)
    models = {"plain": layer, "activated": nn.Sequential(layer, nn.ReLU())}
    return _lower(models, (torch.randn(3, 5),), target="iOS18")


@cache
def scalar_output() -> Case:
    torch.manual_seed(4)
    return _lower({"forward": Scalar()}, (torch.randn(3, 3),))


@cache
def dynamic() -> Case:
    torch.manual_seed(5)
    return _lower({"forward": Scaled(2.0)}, (torch.randn(3, 5),), dynamic_shapes=({0: Dim("rows", min=2, max=8)},))


@cache
def accumulator() -> Case:
    torch.manual_seed(6)
    return _lower({"forward": Accumulator()}, (torch.randn(4),), target="iOS18")


class Absent(nn.Module):
    """Takes and returns what is not there, as attention without its weights does."""

    def forward(self, x, mask=None):
        return (x * 2 if mask is None else x * mask), None


@cache
def absent() -> Case:
    torch.manual_seed(10)
    return _lower({"forward": Absent()}, (torch.randn(3, 5), None))


class Quantized(nn.Module):
    def forward(self, x):
        q = torch.ops.quantized_decomposed.quantize_per_tensor(x, 0.25, 3, -128, 127, torch.int8)
        return torch.ops.quantized_decomposed.dequantize_per_tensor(q, 0.25, 3, -128, 127, torch.int8)


@cache
def portable_quantization() -> Case:
    """No delegate: kernels that ExecuTorch registers on an import of their own."""
    import executorch.kernels.quantized  # noqa: F401
    import torch.ao.quantization.fx._decomposed

    torch.manual_seed(8)
    model, inputs = Quantized(), (torch.randn(4, 4),)
    lowered = to_edge_transform_and_lower(export(model, inputs, strict=False))
    return Case(lowered.to_executorch().buffer, {"forward": model}, inputs)


@cache
def integers() -> Case:
    torch.manual_seed(7)
    return _lower({"forward": Integers()}, (torch.randn(2, 3), torch.tensor([1, 2, 3])))
