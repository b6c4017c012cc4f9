"""Calibration in several processes: all end with the same statistics, merged from those of every process."""

from dataclasses import dataclass

from torch import distributed

from coreml_quantizer.calibration.checkpoint import kinds_of
from coreml_quantizer.calibration.observing import Observers
from coreml_quantizer.errors import CalibrationError
from coreml_quantizer.estimators.base import RangeObserver, State


@dataclass(frozen=True)
class _Contribution:
    """The data that one process sends to the others after its last batch."""

    batches: int
    error: str | None
    kinds: dict[str, str]
    states: dict[str, State]


def processes() -> int:
    """Returns how many processes calibrate together: 1 without a process group."""
    up = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if up else 1


def rank() -> int:
    """Returns the number of this process among these; 0 without a process group."""
    return distributed.get_rank() if processes() > 1 else 0


def merge(observers: Observers, batches: int, error: Exception | None) -> int:
    """Merges the observers of all processes and returns their total number of batches; every process must call it.

    Args:
        observers: The same observers in every process.
        batches: How many batches this process saw.
        error: The error that stopped this process, if any. Such a process calls this too, so that the others do not
            wait for it.

    Raises:
        CalibrationError: A process failed, or calibrates another model or configuration; every process raises it.
    """
    mine = _Contribution(batches, None if error is None else str(error), kinds_of(observers), _states(observers))
    everyone: list[_Contribution | None] = [None] * processes()
    distributed.all_gather_object(everyone, mine)
    contributions = [found for found in everyone if found is not None]
    failures = [f"process {number}: {found.error}" for number, found in enumerate(contributions) if found.error]
    if failures:
        raise CalibrationError("Calibration failed in\n  " + "\n  ".join(failures)) from error
    if any(found.kinds != mine.kinds for found in contributions):
        raise CalibrationError("The processes calibrate different models or configurations. Prepare the same in all.")
    for name, observer in observers.items():
        states = [found.states[name] for found in contributions if name in found.states]
        if states:
            observer.load_state(observer.merge(states))
            observer.common = _on_cpu(observer)
    return sum(found.batches for found in contributions)


def _states(observers: Observers) -> dict[str, State]:
    return {
        name: _contributed(observer)
        for name, observer in observers.items()
        if observer.observes and bool((observer.min_val <= observer.max_val).all())
    }


def _contributed(observer: RangeObserver) -> State:
    """Returns the statistics to merge; after an earlier merge, only the first process includes the common ones."""
    state = _on_cpu(observer)
    return state if observer.common is None or not rank() else observer.since(state, observer.common)


def _on_cpu(observer: RangeObserver) -> State:
    return {key: value.cpu() for key, value in observer.state().items()}
