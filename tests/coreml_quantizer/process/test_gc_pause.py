"""Garbage collection while a graph is prepared, and models that are no longer used."""

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import CoreMLQuantizer, QuantizerError
from coreml_quantizer.process.gc_pause import postpone_collection

USUAL = (700, 10, 10)


@pytest.fixture(autouse=True)
def usual_thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    gc.collect()
    gc.set_threshold(*USUAL)
    yield
    gc.collect()
    gc.set_threshold(*before)


def network() -> GraphModule:
    return torch.export.export(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), (torch.ones(1, 4),)).module()


def test_the_next_collection_is_later_and_those_after_it_as_usual() -> None:
    generations: list[int] = []

    def count(phase: str, info: dict[str, int]) -> None:
        generations.extend([info["generation"]] if phase == "start" else [])

    gc.callbacks.append(count)
    try:
        postpone_collection(1000)
        alive = [[] for _ in range(30_000)]
        assert not generations
        alive += [[] for _ in range(20_000)]
        assert generations
        assert gc.get_threshold() == USUAL
    finally:
        gc.callbacks.remove(count)
    assert len(alive) == 50_000


def test_postponing_twice_returns_to_the_usual_thresholds() -> None:
    postpone_collection(1000)
    postpone_collection(2000)
    assert gc.get_threshold()[0] > 2 * USUAL[0]
    gc.collect()
    assert gc.get_threshold() == USUAL


def test_thresholds_that_are_set_meanwhile_stay() -> None:
    postpone_collection(1000)
    gc.set_threshold(123, 4, 5)
    gc.collect()
    assert gc.get_threshold() == (123, 4, 5)


@pytest.mark.parametrize("how", ["disabled", "threshold"])
def test_collection_that_is_off_stays_off(how: str) -> None:
    thresholds = USUAL if how == "disabled" else (0, 10, 10)
    gc.set_threshold(*thresholds)
    if how == "disabled":
        gc.disable()
    try:
        postpone_collection(1000)
        assert gc.get_threshold() == thresholds
        assert gc.isenabled() is (how != "disabled")
    finally:
        gc.enable()


def test_an_error_leaves_collection_to_come() -> None:
    prepared = prepare_pt2e(network(), CoreMLQuantizer())
    with pytest.raises(QuantizerError, match="prepared already"):
        prepare_pt2e(prepared, CoreMLQuantizer())
    assert gc.isenabled()
    gc.collect()
    assert gc.get_threshold() == USUAL


def test_earlier_models_are_released() -> None:
    graph = network()
    prepared = prepare_pt2e(graph, CoreMLQuantizer("w8"))
    converted = convert_pt2e(prepared)
    earlier = [weakref.ref(model) for model in (graph, prepared, converted)]
    del graph, prepared, converted
    prepare_pt2e(network(), CoreMLQuantizer())
    gc.collect()
    assert [model() for model in earlier] == [None, None, None]
