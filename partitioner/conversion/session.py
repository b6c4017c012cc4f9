"""A context that runs Core ML Tools without output and follows which operation it converts.

Core ML Tools keeps conversion state in globals and reports progress through `tqdm` on the standard error stream. It
validates the whole program after each of its hundred passes, which costs as much time as the passes. In this context it
validates only before and after a pipeline.
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

from partitioner.conversion import declared_half, fast_mil, requantization, shapes
from partitioner.conversion.fast_mil import without_old_garbage
from partitioner.errors import ConversionError
from partitioner.versions import unsuitable

_PROGRESS = ((_frontend, "_tqdm"), (_pipeline, "tqdm"), (_compression, "tqdm"))
"""The progress functions of Core ML Tools: (module, name of the function)."""

_lock = threading.RLock()


@dataclass
class Position:
    """The current position of a conversion.

    Attributes:
        node: The frontend's node that is being converted, or None outside the frontend.
        begun: Whether the frontend has reached the operations.
        pass_name: The current or last MIL pass, or None before the first one.
        in_pipeline: Whether MIL passes are running.
    """

    node: Any = None
    begun: bool = False
    pass_name: str | None = None
    in_pipeline: bool = False

    def restart(self) -> None:
        """Forgets the position of the last conversion."""
        self.node = self.pass_name = None
        self.begun = self.in_pipeline = False

    def follow(self, items: Iterable[Any], *_args: Any, **_kwargs: Any) -> Iterator[Any]:
        """Yields the items unchanged and notes each of them; replaces `tqdm`."""
        for item in items:
            if isinstance(item, str):
                self.pass_name, self.in_pipeline = item, True
            elif hasattr(item, "kind"):
                self.node, self.begun = item, True
            yield item
        self.node, self.in_pipeline = None, False

    def validating(self, validate: Callable[..., None]) -> Callable[..., None]:
        """Wraps the `validate` method of MIL programs, so that it does nothing between passes."""

        def validated(program: Any, *args: Any, **kwargs: Any) -> None:
            if not self.in_pipeline:
                validate(program, *args, **kwargs)

        return validated


@contextmanager
def quiet_conversion() -> Iterator[Position]:
    """Silences Core ML Tools while the context is open, and follows its position.

    Only one thread converts at a time, because Core ML Tools keeps its state in globals.

    Raises:
        ConversionError: The installed Core ML Tools has not what is replaced; the message names the versions.
    """
    position = Position()
    logger = logging.getLogger("coremltools")
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logger.level
        wanted, replaced = _replacements(position)
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


_Attributes = list[tuple[Any, str, Any]]


def _replacements(position: Position) -> tuple[_Attributes, _Attributes]:
    """Returns what is put into Core ML Tools for a conversion, and what is there before: owner, name, value."""
    try:
        wanted: _Attributes = [
            *((module, name, position.follow) for module, name in _PROGRESS),
            (Program, "validate", position.validating(Program.validate)),
            *fast_mil.replacements(),
            *declared_half.replacements(),
            *requantization.replacements(),
            *shapes.replacements(),
        ]
        return wanted, [(owner, name, vars(owner)[name]) for owner, name, _ in wanted]
    except (AttributeError, KeyError) as error:
        raise ConversionError(unsuitable(error)) from error
