"""The export of a model for training, with a batch that may have any size."""

import logging
import traceback
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule

from coreml_quantizer.errors import ExportError

Inputs = tuple[Any, ...]

_log = logging.getLogger(__name__)


def export_for_training(model: nn.Module, example_inputs: Inputs) -> GraphModule:
    """Exports `model` in its current mode; the graph and the model have the same parameters.

    The first dimension of every input is left free where the model allows it, because training batches seldom have the
    size of the example.

    Args:
        model: Any exportable module.
        example_inputs: Its positional inputs.

    Raises:
        ExportError: torch.export cannot trace the model; the message names the line.
    """
    try:
        return torch.export.export(model, _doubled(example_inputs), dynamic_shapes=_free_batch(example_inputs)).module()
    except Exception:  # noqa: BLE001 - whatever a free batch size breaks, a fixed one is tried next
        _log.debug("%s does not export with a free batch size", type(model).__name__, exc_info=True)
    try:
        return torch.export.export(model, example_inputs).module()
    except Exception as error:
        raise ExportError(
            f"torch.export could not trace {type(model).__name__}{_place(error)}: {_first_line(error)}. Make the model "
            "exportable (no data-dependent Python control flow; torch.cond, or a constant, in its place) and check "
            "with torch.export.export(model, example_inputs)."
        ) from error


def _doubled(inputs: Inputs) -> Inputs:
    """Returns `inputs` with every batch of one doubled, because torch.export takes a size of one for a constant."""
    return tuple(
        torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim and len(value) == 1 else value
        for value in inputs
    )


def _free_batch(inputs: Inputs) -> tuple[Any, ...]:
    return tuple({0: Dim.AUTO} if isinstance(value, Tensor) and value.ndim else None for value in inputs)


def _place(error: BaseException) -> str:
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages/torch/" not in frame.filename and not frame.filename.startswith("<")
    ]
    if len(frames) < 2:
        return ""
    last = frames[-1]
    return f" at {last.filename}:{last.lineno} (`{last.line}`)"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
