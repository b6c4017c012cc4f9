"""At the very places that ExecuTorch's own quantizer chooses, ours is at least as accurate."""

from collections.abc import Callable

import pytest
import torch
from helpers.against_stock import AtStockPlaces, Model, StockAgain, fidelity, stock_annotations
from helpers.stock_networks import NETWORKS

SEEDS = 3


@pytest.mark.slow
@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_at_the_places_of_the_stock_quantizer_ours_is_no_worse(make: Callable[[], Model]) -> None:
    torch.manual_seed(0)
    annotations = stock_annotations(*make())
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        model, inputs = make()
        theirs = fidelity(model, inputs, StockAgain(annotations))
        ours = fidelity(model, inputs, AtStockPlaces(annotations))
        assert ours >= theirs, f"seed {seed}: {ours:.2f} dB against {theirs:.2f} dB"
