"""Importing our backend leaves the stock partitioner's work as it was, and both can share a program."""

import torch
from executorch.backends.apple.coreml.partition import CoreMLPartitioner as StockPartitioner
from helpers.lowering import blob, calls, delegates, lower
from torch import nn

from partitioner import CoreMLPartitioner
from partitioner.format.blob import read_blob
from partitioner.options.compile_specs import is_marked

X = (torch.linspace(-1, 1, 12).reshape(2, 6),)


def test_work_of_the_stock_partitioner_goes_to_the_stock_backend() -> None:
    files = read_blob(blob(lower(nn.Linear(6, 4), X, partitioner=StockPartitioner())))
    # Only the stock backend embeds debug information and random identifiers.
    assert "debug_info.json" in files
    first, second = (blob(lower(nn.ReLU(), X, partitioner=StockPartitioner())) for _ in range(2))
    assert first != second


def test_our_work_is_marked_and_ours() -> None:
    manager = lower(nn.Linear(6, 4), X, partitioner=CoreMLPartitioner())
    (delegate,) = delegates(manager)
    assert delegate.backend_id == "CoreMLBackend"
    assert is_marked(delegate.compile_specs)
    assert "debug_info.json" not in read_blob(delegate.processed_bytes)
    assert calls(manager) == {"executorch_call_delegate": 1}
