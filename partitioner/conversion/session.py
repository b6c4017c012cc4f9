"""Runs Core ML Tools without output, and knows which operation it is working on.

Core ML Tools keeps conversion state in globals and reports progress through `tqdm` on the standard error stream. It
validates the whole program after each of its hundred passes, which costs as much as the passes; here it does so before
and after a pipeline.
"""

import logging
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from coremltools.converters.mil.frontend.torch import ops as _frontend
from coremltools.converters.mil.mil.passes import pass_pipeline as _pipeline
from coremltools.converters.mil.mil.program import Program
from coremltools.optimize.coreml import _quantization_passes as _compression

from partitioner.conversion import declared_half, fast_mil, requantization
from partitioner.conversion.fast_mil import without_old_garbage

_PROGRESS = ((_frontend, "_tqdm"), (_pipeline, "tqdm"), (_compression, "tqdm"))
"""(module, name of its progress function)"""

_lock = threading.RLock()


@dataclass
class Position:
    """Where a conversion is.

    Attributes:
        node: The frontend's node being converted, or None outside the frontend.
        begun: Whether the frontend has come to the operations.
        pass_name: The MIL pass being run, once there was one.
        in_pipeline: Whether MIL passes are being run.
    """

    node: Any = None
    begun: bool = False
    pass_name: str | None = None
    in_pipeline: bool = False

    def restart(self) -> None:
        """Forgets where the last conversion was."""
        self.node = self.pass_name = None
        self.begun = self.in_pipeline = False

    def follow(self, items: Iterable[Any], *_args: Any, **_kwargs: Any) -> Iterator[Any]:
        """Stands in for `tqdm`: passes the items on and notes each."""
        for item in items:
            if isinstance(item, str):
                self.pass_name, self.in_pipeline = item, True
            elif hasattr(item, "kind"):
                self.node, self.begun = item, True
            yield item
        self.node, self.in_pipeline = None, False

    def validating(self, validate: Callable[..., None]) -> Callable[..., None]:
        """Wraps the method of MIL programs: between passes it does nothing."""

        def validated(program: Any, *args: Any, **kwargs: Any) -> None:
            if not self.in_pipeline:
                validate(program, *args, **kwargs)

        return validated


@contextmanager
def quiet_conversion() -> Iterator[Position]:
    """Silences Core ML Tools while the block runs; one conversion at a time, since its state is global."""
    position = Position()
    logger = logging.getLogger("coremltools")
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logger.level
        wanted: list[tuple[Any, str, Any]] = [
            *((module, name, position.follow) for module, name in _PROGRESS),
            (Program, "validate", position.validating(Program.validate)),
            *fast_mil.replacements(),
            *declared_half.replacements(),
            *requantization.replacements(),
        ]
        replaced = [(owner, name, vars(owner)[name]) for owner, name, _ in wanted]
        try:
            logger.setLevel(logging.CRITICAL + 1)
            for owner, name, replacement in wanted:
                setattr(owner, name, replacement)
            with without_old_garbage():
                yield position
        finally:
            for owner, name, original in replaced:
                setattr(owner, name, original)
            logger.setLevel(level)
