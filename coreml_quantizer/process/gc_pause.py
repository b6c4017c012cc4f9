"""Postponement of garbage collection while a graph is prepared: many objects are made and none become garbage."""

import gc
from typing import Any

_OBJECTS_PER_NODE = 40
"""More objects than preparation makes for each node: observers of a dozen containers each, annotations and calls."""


class _Postponement:
    """A raised collection threshold for young objects, with the usual thresholds to return to."""

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
        """Restores the usual thresholds when the next collection starts; the interpreter calls it."""
        if phase == "start" and self._usual is not None:
            if gc.get_threshold()[0] == self._raised:
                gc.set_threshold(*self._usual)
            self._usual = None


_POSTPONEMENT = _Postponement()


def postpone_collection(nodes: int) -> None:
    """Postpones the next cyclic garbage collection by as many objects as are made while a graph is prepared.

    A full collection visits every object of the process. While a graph is prepared, all of these are alive: collection
    frees nothing, and its share of the time grows faster than the graph. Much of the preparation happens inside
    torchao, before and after it calls the quantizer. An error there would leave collection off if it was switched off.
    It therefore only comes later, and is as usual from then on.

    Args:
        nodes: Number of nodes of the graph.
    """
    _POSTPONEMENT.begin(_OBJECTS_PER_NODE * nodes)
