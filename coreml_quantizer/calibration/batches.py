"""Calls of a model with the batches that a loader gives."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from coreml_quantizer.errors import CalibrationError

_MISFITS = (TypeError, AttributeError, AssertionError)
"""Errors that a graph raises when it is called with too many, too few, or other inputs than it was exported for."""


def run_batch(model: nn.Module, number: int, batch: Any, inputs: Callable[[Any], Any] | None) -> Any:
    """Calls a model with a batch, moved to its device, and returns its outputs.

    Args:
        model: A graph.
        number: Number of the batch, for messages.
        batch: A tensor, a tuple or list of positional inputs, or a dict of named ones; or anything that `inputs` turns
            into one of these.
        inputs: Takes a batch and returns what the model is called with; None for the batch itself.

    Raises:
        CalibrationError: An input is an empty tensor, the batch is not what the model takes, or an observer in the
            model refuses the values it sees.
    """
    given = inputs(batch) if inputs is not None else batch
    positional, named = _arguments(given)
    for name, value in (*enumerate(positional), *named.items()):
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor) and leaf.numel() == 0:
                raise CalibrationError(f"Batch {number}: input {name!r} is empty: its shape is {tuple(leaf.shape)}.")
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    move = lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf  # noqa: E731
    try:
        return model(*tree_map(move, positional), **tree_map(move, named))
    except CalibrationError as error:
        raise CalibrationError(f"Batch {number}: {error}") from error
    except _MISFITS as error:
        raise CalibrationError(
            f"Batch {number}, {_described(given)}, is not what the model takes: {error}\n"
            "Give a tensor, a tuple or list of positional inputs, or a dict of named ones; "
            "inputs=lambda batch: batch[0] selects from what the loader gives. Sizes are those of the example that was "
            "exported, unless torch.export.export was given dynamic_shapes; a single batch is given as [batch]."
        ) from error


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch) if isinstance(batch, list | tuple) else (batch,)), {}


def _described(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"a tensor of shape {tuple(batch.shape)}"
    size = f" of {len(batch)}" if isinstance(batch, list | tuple | Mapping) else ""
    return f"a {type(batch).__name__}{size}"
