"""Checkpoints of calibration, from which an interrupted calibration goes on where it stopped."""

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coreml_quantizer.calibration.observing import Observers
from coreml_quantizer.errors import CalibrationError
from coreml_quantizer.estimators.base import State

_MAGIC = b"coreml_quantizer calibration 3\n"


def check_place(path: Path) -> None:
    """Checks that `path` can be written, before any batch is spent.

    Raises:
        CalibrationError: It is a directory, or in one that does not exist.
    """
    if path.is_dir():
        raise CalibrationError(f"The checkpoint {path} is a directory. Give the path of a file.")
    if not path.parent.is_dir():
        raise CalibrationError(f"The checkpoint {path} has no directory {path.parent} to stand in. Make it first.")


def states_of(observers: Observers) -> dict[str, State]:
    """Returns the statistics of all observers that calibration changes, by name."""
    return {name: observer.state() for name, observer in observers.items() if observer.observes}


def restore(observers: Observers, states: dict[str, State]) -> None:
    """Replaces the statistics of all observers by those that `states_of` returned."""
    for name, state in states.items():
        observers[name].load_state(state)


def save(path: Path, observers: Observers, buffers: Mapping[str, Tensor], batches: int, share: str) -> None:
    """Writes the statistics of all observers after `batches` batches: to a file beside `path`, which is then renamed.

    Args:
        path: The file.
        observers: All observers of a graph.
        buffers: Buffers that the model writes, such as caches.
        batches: How many batches the model has seen.
        share: Which share of all batches this process takes, in words.
    """
    saved = {
        "batches": batches,
        "share": share,
        "kinds": kinds_of(observers),
        "states": states_of(observers),
        "buffers": dict(buffers),
    }
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(_packed(saved))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def load(path: Path, observers: Observers, buffers: Mapping[str, Tensor], share: str) -> int:
    """Restores all observers and buffers and returns how many batches were seen; 0 if there is no file.

    Raises:
        CalibrationError: The file is damaged, or belongs to another model, configuration or share of the batches.
    """
    if not path.exists():
        return 0
    saved = _read(path)
    if saved.get("kinds") != kinds_of(observers) or _shapes(saved["buffers"]) != _shapes(buffers):
        raise CalibrationError(
            f"The checkpoint {path} is of another model or configuration. Delete it to calibrate from the start."
        )
    if saved["share"] != share:
        raise CalibrationError(
            f"The checkpoint {path} is of {saved['share']}, and this is {share}. Go on with as many processes as "
            "before, or delete it to calibrate from the start."
        )
    restore(observers, saved["states"])
    for name, buffer in buffers.items():
        buffer.copy_(saved["buffers"][name])
    return int(saved["batches"])


def _shapes(buffers: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (buffer.shape, buffer.dtype) for name, buffer in buffers.items()}


def _packed(saved: dict[str, Any]) -> bytes:
    content = io.BytesIO()
    torch.save(saved, content)
    return _MAGIC + hashlib.sha256(content.getvalue()).digest() + content.getvalue()


def _read(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    if not raw.startswith(_MAGIC):
        raise CalibrationError(f"{path} is no calibration checkpoint. Give another path as `checkpoint`.")
    begin = len(_MAGIC) + hashlib.sha256().digest_size
    content = raw[begin:]
    # torch.load checks no sums: it would take changed statistics as they are.
    if hashlib.sha256(content).digest() != raw[len(_MAGIC) : begin]:
        raise CalibrationError(f"The calibration checkpoint {path} is damaged. Delete it to start anew.")
    saved: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return saved


def kinds_of(observers: Observers) -> dict[str, str]:
    """Returns the class, the tensor and the spec of every observer; statistics fit only if all three are equal."""
    return {name: f"{type(o).__name__} {o.tensor_name} {o.spec}" for name, o in observers.items()}
