"""The calibration loop over the batches of a loader."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from coreml_quantizer.calibration import checkpoint as checkpoints
from coreml_quantizer.calibration import merging
from coreml_quantizer.calibration.batches import run_batch
from coreml_quantizer.calibration.observing import Observers, check_finite, observers_of
from coreml_quantizer.calibration.progress import shown
from coreml_quantizer.errors import CalibrationError
from coreml_quantizer.graph.values import written_buffers


def calibrate(
    prepared: GraphModule,
    loader: Iterable[Any],
    *,
    max_batches: int | None = None,
    inputs: Callable[[Any], Any] | None = None,
    shard: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10,
    progress: bool = True,
) -> int:
    """Runs a prepared model on representative data, so that its observers find the ranges of all activations.

    Buffers that the model writes, such as caches, keep their values from batch to batch and are restored at the end.

    With a `torch.distributed` process group, every process runs its own batches, and at the end all have the same
    statistics. For min_max, histogram, percentile and entropy, these are exactly those of one process over all batches.

    Args:
        prepared: The graph that `prepare_pt2e` returned.
        loader: Batches: a tensor, a tuple or list of positional inputs, or a dict of named ones. They are moved to the
            device of the model. Resuming expects the same batches in the same order.
        max_batches: How many batches each process takes from `loader`, before `shard` divides them; None for all.
        inputs: Takes a batch and returns what the model is called with, such as `lambda batch: batch[0]`.
        shard: Whether every process takes its share of `loader` (the first of two takes every other batch). Leave it
            out if `loader` already gives each process different batches, for example with a DistributedSampler.
        checkpoint: File to save progress in, and to resume from if it exists; removed when calibration is done. Every
            process except the first appends its number to the name.
        checkpoint_every: Batches between two checkpoints.
        progress: Whether to show a bar on standard error, if that is a terminal.

    Returns:
        How many batches all processes observed, including those before a resumption.

    Raises:
        CalibrationError: There are no batches, one is empty or is not what the model takes, the model makes
            not-a-number or infinite values of one (batch and tensor are named), or the checkpoint does not fit.
        ValueError: `max_batches` or `checkpoint_every` is below 1.
    """
    for name, value in (("max_batches", max_batches), ("checkpoint_every", checkpoint_every)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1.")
    observers = observers_of(prepared)
    if not any(observer.observes for observer in observers.values()):
        return 0
    loop = _Loop(prepared, observers, inputs, _checkpoint_path(checkpoint), checkpoint_every, _share(shard))
    batches = itertools.islice(loader, max_batches)
    if shard:
        batches = itertools.islice(batches, merging.rank(), None, merging.processes())
    if merging.processes() == 1:
        loop.run(batches, _total(loader, max_batches), progress)
        seen = loop.done
    else:
        seen = _run_with_others(loop, batches, progress)
    if loop.path is not None:
        loop.path.unlink(missing_ok=True)
    if not seen:
        raise CalibrationError("The loader gave no batches; observers need at least one.")
    return seen


class _Loop:
    """One process's share of calibration.

    Attributes:
        done: Batches that the observers have seen.
    """

    def __init__(
        self,
        prepared: GraphModule,
        observers: Observers,
        inputs: Callable[[Any], Any] | None,
        path: Path | None,
        every: int,
        share: str,
    ) -> None:
        self.path = path
        self._share = share
        self.done = 0
        self._prepared, self._observers, self._inputs, self._every = prepared, observers, inputs, every
        self._buffers = written_buffers(prepared)

    def run(self, batches: Iterable[Any], total: int | None, progress: bool) -> None:
        with torch.no_grad(), _rewinding(self._buffers.values()):
            if self.path is None:
                self._show(batches, total, progress)
            else:
                self._go_on(self.path, batches, total, progress)

    def _go_on(self, path: Path, batches: Iterable[Any], total: int | None, progress: bool) -> None:
        checkpoints.check_place(path)
        self.done = checkpoints.load(path, self._observers, self._buffers, self._share)
        before = checkpoints.states_of(self._observers)
        try:
            self._show(itertools.islice(batches, self.done, None), total, progress)
        except BaseException:
            # The batches since the last checkpoint will come again; before the first one, that is all of them.
            if not path.exists():
                checkpoints.restore(self._observers, before)
            raise

    def _show(self, batches: Iterable[Any], total: int | None, progress: bool) -> None:
        for batch in shown(batches, total, self.done, progress, "Calibrating"):
            self._observe(batch)
            self.done += 1
            if self.path is not None and self.done % self._every == 0:
                checkpoints.save(self.path, self._observers, self._buffers, self.done, self._share)

    def _observe(self, batch: Any) -> None:
        run_batch(self._prepared, self.done, batch, self._inputs)
        try:
            check_finite(self._observers)
        except CalibrationError as error:
            raise CalibrationError(f"Batch {self.done}: {error}") from error


@contextmanager
def _rewinding(buffers: Iterable[Tensor]) -> Iterator[None]:
    """Restores buffers that the model writes, such as caches, when the context ends.

    The converted model starts with the restored values.
    """
    before = [(buffer, buffer.clone()) for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def _share(shard: bool) -> str:
    return f"process {merging.rank()} of {merging.processes()}{' with a share of one loader' if shard else ''}"


def _run_with_others(loop: _Loop, batches: Iterator[Any], progress: bool) -> int:
    failure: Exception | None = None
    try:
        loop.run(batches, None, progress and merging.rank() == 0)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other processes wait for this one
        failure = error
    return merging.merge(loop._observers, loop.done, failure)


def _checkpoint_path(checkpoint: str | os.PathLike[str] | None) -> Path | None:
    if checkpoint is None:
        return None
    path = Path(checkpoint)
    return path.with_name(f"{path.name}.{merging.rank()}") if merging.rank() else path


def _total(loader: Iterable[Any], max_batches: int | None) -> int | None:
    length = len(loader) if isinstance(loader, Sized) else None
    known = [number for number in (length, max_batches) if number is not None]
    return min(known, default=None)
