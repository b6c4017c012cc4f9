"""Products of matrices with factors that are integers: ``beta * x + alpha * (a @ b)``.

Core ML multiplies values of one type only, and the converter of Core ML Tools passes the factors on as they are.
"""

from typing import Any

from partitioner.lowerings.registry import wrap_converter

_FACTORS = 3


def _as_floats(node: Any) -> None:
    if not node.meta["val"].is_floating_point():
        return
    node.inputs = [
        float(value) if position >= _FACTORS and isinstance(value, int) else value
        for position, value in enumerate(node.inputs)
    ]
    node.kwinputs = {
        name: [float(value) if isinstance(value, int) else value for value in values]
        for name, values in (node.kwinputs or {}).items()
    }


for _name in ("addmm", "baddbmm"):
    wrap_converter(_name, _as_floats)
