"""Calibration that was interrupted goes on where it stopped."""

import os
from pathlib import Path
from typing import Any

import torch

from coreml_quantizer.calibration.observing import Observers
from coreml_quantizer.errors import CalibrationError

_FORMAT = 1


def save(path: Path, observers: Observers, batches: int) -> None:
    """Writes what all observers know after `batches` batches: beside `path` first, then renamed."""
    states = {name: observer.state() for name, observer in observers.items() if observer.observes}
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        torch.save({"format": _FORMAT, "batches": batches, "kinds": _kinds(observers), "states": states}, beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def load(path: Path, observers: Observers) -> int:
    """Restores all observers and returns how many batches they have seen; 0 when there is no file.

    Raises:
        CalibrationError: The file is damaged, or is about another model or configuration.
    """
    if not path.exists():
        return 0
    saved = _read(path)
    if saved.get("kinds") != _kinds(observers):
        raise CalibrationError(
            f"The checkpoint {path} is of another model or configuration. Delete it to calibrate from the start."
        )
    for name, state in saved["states"].items():
        observers[name].load_state(state)
    return int(saved["batches"])


def _read(path: Path) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load raises many kinds of errors for damaged files, some of them plain RuntimeErrors.
        raise CalibrationError(f"The checkpoint {path} cannot be read ({error}). Delete it to start anew.") from error
    if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
        raise CalibrationError(f"{path} is no calibration checkpoint. Give another path as `checkpoint`.")
    return saved


def _kinds(observers: Observers) -> dict[str, str]:
    return {name: f"{type(o).__name__} {o.tensor_name} {o.spec}" for name, o in observers.items()}
