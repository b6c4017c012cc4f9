"""Corrections for Core ML Tools, which removes a dequantize and a quantize even if they change the quantization grid.

When a quantize directly follows a dequantize, the passes of Core ML Tools compare the scales and the zero points, but
not the types: from int8 to uint8, values below zero are cut off. When a reshape is between the two, the passes compare
nothing. If the types differ, the next dequantize refuses its zero point and the conversion fails. If only the grids
differ, the numbers are wrong.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.passes.defs.optimize_quantization import (
    dequantize_quantize_pair_elimination,
    int_op_canonicalization,
)


def _zero_point(operation: Any) -> Any:
    return 0 if operation.zero_point is None else operation.zero_point.val


def _axis(operation: Any) -> Any:
    return None if operation.axis is None else operation.axis.val


def on_one_grid(dequantize: Any, quantize: Any) -> bool:
    """Returns whether a quantize gives back the same integers that the dequantize before it reads."""
    return bool(
        types.builtin_to_string(dequantize.input.dtype) == quantize.output_dtype.val
        and np.array_equal(dequantize.scale.val, quantize.scale.val)
        and np.all(np.equal(_zero_point(dequantize), _zero_point(quantize)))
        and _axis(dequantize) == _axis(quantize)
    )


def _without_repetition(dequantize: Any) -> bool:
    """Removes the quantizes after a dequantize that give back its integers; returns whether it removed one.

    Replaces `dequantize_quantize_pair_elimination.try_dequantize_quantize_pair_elimination`.
    """
    block = dequantize.enclosing_block
    if dequantize.op_type != "dequantize" or dequantize.outputs[0] in block.outputs:
        return False
    removed = False
    for reader in list(dequantize.outputs[0].child_ops):
        if reader.op_type == "quantize" and on_one_grid(dequantize, reader):
            removed |= _replaced(block, reader, dequantize.input)
    if removed and not dequantize.outputs[0].child_ops:
        block.remove_ops([dequantize])
    return removed


def _replaced(block: Any, quantize: Any, integers: Any) -> bool:
    if not block.try_replace_uses_of_var_after_op(anchor_op=quantize, old_var=quantize.outputs[0], new_var=integers):
        return False
    block.remove_ops([quantize])
    return True


def _on_one_grid_only(match: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `int_op_canonicalization.match_pattern`, which finds a dequantize, a reshape and a quantize.

    Only matches whose dequantize and quantize have the same grid, for the whole tensor, remain.
    """

    def matched(self: Any, operation: Any) -> Any:
        found = match(self, operation)
        # Along an axis, a reshape changes which values a scale belongs to.
        return found if found is not None and _axis(found[0]) is None and on_one_grid(*found) else None

    return matched


def replacements() -> tuple[tuple[Any, str, Any], ...]:
    """Returns what is replaced while a conversion runs: owner, name and replacement."""
    return (
        (
            dequantize_quantize_pair_elimination,
            "try_dequantize_quantize_pair_elimination",
            staticmethod(_without_repetition),
        ),
        (int_op_canonicalization, "match_pattern", _on_one_grid_only(int_op_canonicalization.match_pattern)),
    )
