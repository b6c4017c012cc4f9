"""Postpones garbage collection where many objects are made and none become garbage."""

import gc
from typing import Any

_OBJECTS_PER_NODE = 40
"""More than preparing makes for a node of a graph: observers, of a dozen containers each, annotations and calls."""


class _Postponement:
    """The thresholds of the interpreter, while there is another one for young objects."""

    def __init__(self) -> None:
        self._usual: tuple[int, int, int] | None = None
        self._raised = 0

    def begin(self, objects: int) -> None:
        thresholds = gc.get_threshold()
        if not gc.isenabled() or not thresholds[0]:
            return
        if self not in gc.callbacks:
            gc.callbacks.append(self)
        if self._usual is None or thresholds[0] != self._raised:
            self._usual = thresholds
        self._raised = gc.get_count()[0] + max(objects, self._usual[0])
        gc.set_threshold(self._raised, *self._usual[1:])

    def __call__(self, phase: str, info: dict[str, Any]) -> None:
        """Ends with the next collection, whatever starts it; the interpreter calls it."""
        if phase == "start" and self._usual is not None:
            if gc.get_threshold()[0] == self._raised:
                gc.set_threshold(*self._usual)
            self._usual = None


_POSTPONEMENT = _Postponement()


def postpone_collection(nodes: int) -> None:
    """Postpones the next cyclic garbage collection by as many objects as are made while a graph is prepared.

    A collection of everything visits every object of the process. While a graph is prepared all of them are alive, so
    that it frees nothing, and its share of the time grows faster than the graph. Much of that happens inside torchao,
    before and after it asks the quantizer for anything: instead of being switched off, and left so by an error there,
    collection is due later, and is as usual from then on.

    Args:
        nodes: How many the graph has.
    """
    _POSTPONEMENT.begin(_OBJECTS_PER_NODE * nodes)
