"""Arguments that a converter requires, but that exported programs leave out where they have their default values."""

from collections.abc import Callable, Sequence
from typing import Any

from partitioner.lowerings.registry import wrap_converter

_MEAN = 1

_DEFAULTS: dict[str, tuple[int, Sequence[Any]]] = {
    "mse_loss": (2, (_MEAN,)),
    "linalg_matrix_norm": (2, ((-2, -1), False, None)),
    "conv_transpose1d": (2, (None, (1,), (0,), (0,), 1, (1,))),
    "conv_transpose2d.input": (2, (None, (1, 1), (0, 0), (0, 0), 1, (1, 1))),
    "conv_transpose3d.input": (2, (None, (1, 1, 1), (0, 0, 0), (0, 0, 0), 1, (1, 1, 1))),
}
"""Operation -> the number of arguments that are always given, and the defaults of the others."""


def _filled(required: int, defaults: Sequence[Any]) -> Callable[[Any], None]:
    def fill(node: Any) -> None:
        node.inputs = [*node.inputs, *defaults[len(node.inputs) - required :]]

    return fill


for _name, _arguments in _DEFAULTS.items():
    wrap_converter(_name, _filled(*_arguments))
