"""After lowering, quantize and dequantize stand where Core ML can use them, on whole architectures."""

import pytest
import torch
from helpers.densenet import DenseNet
from helpers.graphs import quantize
from helpers.mil_placement import problems
from helpers.mil_program import Op, lowered_operations
from helpers.models import ARCHITECTURES, build, settle
from torch import Tensor, nn

from coreml_quantizer import presets


def densenet() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 3, 32, 32),)
    return settle(DenseNet((2, 2), growth=8, stem=16), inputs), inputs


MODELS = {**{name: (lambda name=name: build(name)) for name in ARCHITECTURES}, "densenet": densenet}
QUICK = ("densenet", "unet", "vit")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_quantizers_stand_where_core_ml_can_use_them(name: str) -> None:
    model, inputs = MODELS[name]()
    for config in (None, presets.w8a8()):
        check(model, inputs, config)


def check(model: nn.Module, inputs: tuple[Tensor, ...], config: object) -> None:
    ops = lowered_operations(quantize(model, inputs, config), inputs)
    kinds = [op.kind for op in ops]
    assert kinds.count("quantize") >= 8
    assert kinds.count("dequantize") >= kinds.count("quantize")
    assert problems(ops) == []


def chain(*kinds: str | tuple[str, float]) -> list[Op]:
    """A program in which every operation reads the one before; a scale stands beside a quantize or dequantize."""
    ops: list[Op] = [Op("input", "x", {})]
    for index, kind in enumerate(kinds):
        name, scale = kind if isinstance(kind, tuple) else (kind, None)
        op = Op(name, f"op{index}", {}, values={} if scale is None else {"scale": scale})
        connect(ops[-1], op)
        ops.append(op)
    return ops


def connect(producer: Op, reader: Op) -> None:
    reader.producers.append(producer)
    producer.readers.append(reader)


Q, DQ = ("quantize", 0.5), ("dequantize", 0.5)


@pytest.mark.parametrize(
    ("program", "found"),
    [
        (chain(Q, DQ, "conv", "relu", Q, DQ, "reshape", Q, DQ, "linear", Q, DQ), ""),
        (chain("conv", Q, DQ), "reads input x, which is not dequantized"),
        (chain(Q, DQ, "linear", "softmax"), "is read by softmax op3, and not quantized"),
        (chain(Q, DQ, "conv", Q, DQ, "max_pool", ("quantize", 0.25)), "quantizes by (0.25, 0.0)"),
        (chain("layer_norm", Q, DQ, "softmax"), "is quantized between"),
    ],
)
def test_the_check_finds_what_is_wrong(program: list[Op], found: str) -> None:
    assert (problems(program) == []) is (found == "")
    assert all(found in problem for problem in problems(program))


def test_the_check_finds_half_quantized_residuals() -> None:
    program = chain(Q, DQ, "conv", Q, DQ, "add", Q, DQ, "linear", Q)
    norm = Op("layer_norm", "norm", {})
    connect(program[0], norm)
    connect(norm, program[6])
    (problem,) = problems([*program, norm])
    assert "of which only one is quantized" in problem
