"""The calls that messages name as remedies are made as they stand, and mend what the message is about."""

import re
from collections.abc import Callable
from typing import Any

import coremltools as ct
import pytest
import torch
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from helpers.lowering import CallCounter, Function
from helpers.minimal_quantizer import quantized
from torch import Tensor, nn

from partitioner import CoreMLBackend, CoreMLPartitioner, lower
from partitioner.errors import PartitionerError

X = torch.linspace(-1, 1, 16).reshape(2, 8)
IMAGE = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
WEIGHT = torch.ones(8, 2, dtype=torch.int8)
NAMES = {
    "ct": ct,
    "torch": torch,
    "CoreMLBackend": CoreMLBackend,
    "CoreMLPartitioner": CoreMLPartitioner,
    "EdgeCompileConfig": EdgeCompileConfig,
    "to_edge_transform_and_lower": to_edge_transform_and_lower,
}
CALL = re.compile(r"(?:CoreMLPartitioner|CoreMLBackend\.generate_compile_specs|to_edge_transform_and_lower)\(")


def specs(target: ct.target) -> dict[str, Any]:
    return {"compile_specs": CoreMLBackend.generate_compile_specs(minimum_deployment_target=target)}


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU()).eval()


def narrow_product(x: Tensor) -> Tensor:
    return (x.to(torch.int8) @ WEIGHT).float() * 2


def of_4_bits() -> nn.Module:
    return quantized(dense(), (X,), activation=None, weight_range=(-7, 7))


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, Any], int]] = {
    "a product of 8-bit integers": (lambda: Function(narrow_product), X, {}, 2),
    "the same, as a whole": (lambda: Function(narrow_product), X, {"lower_full_graph": True}, 2),
    "quantized activations": (lambda: quantized(dense(), (X,)), X, specs(ct.target.iOS16), 1),
    "4-bit weights": (of_4_bits, X, specs(ct.target.iOS17), 1),
    "a new operation": (
        lambda: Function(lambda x: nn.functional.pixel_unshuffle(x, 2)),
        IMAGE,
        specs(ct.target.iOS15),
        1,
    ),
    "states": (CallCounter, X, specs(ct.target.iOS17), 2),
    "no ML programs": (dense, X, specs(ct.target.iOS14), 1),
    "an operation that neither has": (lambda: Function(lambda x: torch.erfinv(x * 0.5) * 2), X, {}, 1),
    "a volume": (lambda: Function(lambda x: nn.functional.avg_pool3d(x, 2, divisor_override=3)), IMAGE[None], {}, 1),
}


def expressions(message: str) -> list[str]:
    """Returns the calls that a message names, with balanced parentheses."""
    found = []
    for match in CALL.finditer(message):
        depth = 0
        for end in range(match.end() - 1, len(message)):
            depth += {"(": 1, ")": -1}.get(message[end], 0)
            if depth == 0:
                found.append(message[match.start() : end + 1])
                break
    outer = [one for one in found if not any(one is not other and one in other for other in found)]
    return list(dict.fromkeys(outer))


def applied(remedy: Any, program: torch.export.ExportedProgram) -> None:
    if isinstance(remedy, list):
        remedy = CoreMLPartitioner(compile_specs=remedy)
    if isinstance(remedy, CoreMLPartitioner):
        remedy = to_edge_transform_and_lower(program, partitioner=[remedy])
    assert remedy.to_executorch().buffer


@pytest.mark.parametrize("name", CASES)
def test_remedies_work(name: str) -> None:
    build, x, options, count = CASES[name]
    model = build()
    x = x.reshape(1, 1, 2, 2, 4) if name == "a volume" else x
    with pytest.raises(PartitionerError) as error:
        lower(torch.export.export(model, (x,)), partitioner=CoreMLPartitioner(**options))
    remedies = expressions(str(error.value))
    assert len(remedies) == count, str(error.value)
    for remedy in remedies:
        program = torch.export.export(model, (x,))
        applied(eval(remedy, {**NAMES, "program": program}), program)
