"""Quantizers sit where coremltools' LinearQuantizer puts them; every difference is listed with its reason."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from coremltools.optimize.torch.quantization import LinearQuantizer as TheirQuantizer
from coremltools.optimize.torch.quantization import LinearQuantizerConfig
from helpers.observed_places import Place, places
from helpers.placement_models import MODELS
from torch import nn
from torch.ao.quantization import FakeQuantizeBase

from coreml_quantizer import LinearQuantizer
from coreml_quantizer.qat.quantizers.base import FakeQuantizer, Follower
from coreml_quantizer.qat.quantizers.folded_weight import FoldedWeight

SCHEMES = ("symmetric", "affine")
ONLY_THEIRS, ONLY_OURS, OTHER_GRID = "quantized by coremltools only", "quantized here only", "another grid"

Found = tuple[str, str, str]


@dataclass(frozen=True)
class Difference:
    """Reviewed: what differs, and why it is meant to.

    Attributes:
        op: What is quantized.
        kind: How it differs.
        reason: Why.
        at: In which model, under which name of its maker, and in which schemes.
    """

    op: str
    kind: str
    reason: str
    at: Mapping[tuple[str, str], tuple[str, ...]]


def _at(*places_: tuple[str, str], schemes: tuple[str, ...] = SCHEMES) -> Mapping[tuple[str, str], tuple[str, ...]]:
    return MappingProxyType(dict.fromkeys(places_, schemes))


DIFFERENCES = (
    Difference(
        "softmax at the output",
        ONLY_THEIRS,
        "softmax is computed in floating point; its result is rounded where an 8-bit operator reads it",
        _at(("plain", "LinearAct")),
    ),
    Difference(
        "layer in front of a softmax",
        ONLY_OURS,
        "a layer has an 8-bit output whatever follows; coremltools fuses the softmax into it",
        _at(("plain", "linear"), ("gated", "matmul")),
    ),
    Difference(
        "layer in front of a sigmoid that is a function",
        ONLY_THEIRS,
        "coremltools fuses only activations that are modules, here any",
        _at(("functional", "Conv2d")),
    ),
    Difference(
        "sigmoid that is a function",
        OTHER_GRID,
        "outputs of a sigmoid lie in [0, 1] however it is called; coremltools fixes the grid of modules only",
        _at(("functional", "sigmoid")),
    ),
    Difference(
        "product of a ReLU and such a sigmoid",
        OTHER_GRID,
        "both inputs are affine, so it is too; coremltools takes the sigmoid for symmetric",
        _at(("functional", "mul"), schemes=("symmetric",)),
    ),
    Difference(
        "mean that is a method",
        OTHER_GRID,
        "a mean shares the grid of its input however it is called; coremltools lets the function share only",
        _at(("inverted", "mean")),
    ),
    Difference(
        "average pool of a float input",
        OTHER_GRID,
        "it stays in floating point, and the layer behind gets a grid of its own; coremltools shares with the input",
        _at(("branches", "avg_pool2d")),
    ),
    Difference(
        "concatenation with a sigmoid or tanh",
        OTHER_GRID,
        "its grid holds all inputs; coremltools takes [0, 1] of the sigmoid, which clips what is negative",
        _at(("branches", "cat"), ("branches", "max_pool2d")),
    ),
    Difference(
        "ReLU in front of that concatenation",
        OTHER_GRID,
        "outputs of a ReLU are affine; coremltools makes it symmetric with the group",
        _at(("branches", "relu"), schemes=("symmetric",)),
    ),
    Difference(
        "weight of a transposed convolution with batch norm",
        OTHER_GRID,
        "one scale per output channel, as without batch norm; coremltools has one per input channel there",
        _at(("branches", "weight")),
    ),
    Difference(
        "product of softmax and a view",
        OTHER_GRID,
        "a view shares the grid of what it views; coremltools gives it [0, 1] of the softmax, which clips",
        _at(("gated", "transpose")),
    ),
)


def same_grid(ours: Place, theirs: Place) -> bool:
    """Our scales are float16; averages of coremltools move by 1 % of the way to the outputs of pools and views."""
    if ours.unsigned != theirs.unsigned or ours.scale.shape != theirs.scale.shape:
        return False
    close = torch.allclose(ours.scale, theirs.scale, rtol=0.02 + 2**-10, atol=0)
    return close and bool((ours.zero_point - theirs.zero_point).abs().max() <= 1)


def compare(ours: list[Place], theirs: list[Place]) -> tuple[set[tuple[str, str]], int]:
    """Returns the differences as (kind, maker), and how many places are the same."""
    found, same = set(), 0
    for place in theirs:
        match = next((other for other in ours if other.is_at(place)), None)
        if match is None:
            found.add((ONLY_THEIRS, place.op))
        elif same_grid(match, place):
            same += 1
        else:
            found.add((OTHER_GRID, match.op))
    found |= {(ONLY_OURS, place.op) for place in ours if not any(place.is_at(other) for other in theirs)}
    return found, same


def observed(model: nn.Module, scheme: str, batch: torch.Tensor) -> tuple[list[Place], list[Place]]:
    """Prepares `model` with both tools and the same configuration, and shows both the same batch."""
    config = {"global_config": {"quantization_scheme": scheme, "milestones": [0, 9, 9, 9]}}
    ours, theirs = LinearQuantizer(model, config), TheirQuantizer(model, LinearQuantizerConfig.from_dict(config))
    prepared, reference = ours.prepare(batch), theirs.prepare((batch,))
    ours.step()
    theirs.step()
    return (
        places(prepared.eval(), batch, (FoldedWeight, FakeQuantizer, Follower)),
        places(reference.eval(), batch, (FakeQuantizeBase,)),
    )


@pytest.mark.parametrize("scheme", ["symmetric", pytest.param("affine", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MODELS)
def test_quantizers_sit_where_coremltools_puts_them(name: str, scheme: str) -> None:
    torch.manual_seed(0)
    model, shape = MODELS[name]()
    found, same = compare(*observed(copy.deepcopy(model), scheme, torch.randn(shape)))
    reviewed = {
        (difference.kind, op)
        for difference in DIFFERENCES
        for (where, op), schemes in difference.at.items()
        if where == name and scheme in schemes
    }
    assert found == reviewed
    assert same >= 7


def test_every_difference_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "training.md").read_text()
    for difference in DIFFERENCES:
        assert f"| {difference.op} | {difference.kind} | {difference.reason} |" in text
