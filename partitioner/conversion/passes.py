"""MIL passes of our own."""

from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

from partitioner.limits import HIGHEST_RANK, SMALLEST_HALF
from partitioner.no_origin import NO_ORIGIN

_NAMESPACE = "partitioner"
MAKES_BATCH_NORMS = "common::fuse_elementwise_to_batchnorm"


class DistinctOutputs(AbstractGraphPass):
    """Gives every output a value, and so a name, of its own.

    Removing operations that do nothing, or repeat another one, can leave two outputs with one value, or an output that
    is an input. A model description names each of its inputs and outputs once.
    """

    def apply(self, prog: Any) -> None:
        """Copies, in place, each output that is an input or an earlier output."""
        for function in prog.functions.values():
            taken = set(function.inputs.values())
            outputs = []
            with function, mb.scope(*NO_ORIGIN):
                for position, output in enumerate(function.outputs):
                    repeated = output in taken
                    outputs.append(mb.identity(x=output, name=f"{output.name}_as_{position}") if repeated else output)
                    taken.add(output)
            function.set_outputs(outputs)


class LowRankQuantization(AbstractGraphPass):
    """Quantizes in front of reshapes and transposes whose result Core ML cannot hold, rather than behind them.

    Core ML has no tensors of rank 6 and more. A reshape to such a rank, a transpose and a reshape back, as attention in
    windows has them, are rewritten by a pass of Core ML Tools, which does not look through a quantization between them.
    Quantizing per tensor commutes with both, so it moves to where the rank is still low.
    """

    def apply(self, prog: Any) -> None:
        """Moves, in place, every quantization of high rank towards its input."""
        for function in prog.functions.values():
            with function, mb.scope(*NO_ORIGIN):
                for operation in list(function.operations):
                    moved: Any | None = operation
                    while moved is not None and _of_high_rank(moved):
                        moved = _moved_before_view(function, moved)


def _of_high_rank(operation: Any) -> bool:
    return operation.op_type == "dequantize" and operation.axis is None and operation.outputs[0].rank > HIGHEST_RANK


def _moved_before_view(block: Any, dequantize: Any) -> Any | None:
    """Returns the new dequantize, or None when there was nothing to move."""
    quantize = dequantize.input.op
    view = quantize.input.op if quantize is not None and quantize.op_type == "quantize" else None
    if view is None or view.op_type not in ("reshape", "transpose"):
        return None
    before = {"scale": quantize.scale, "zero_point": quantize.zero_point, "before_op": dequantize}
    integers = mb.quantize(input=view.x, output_dtype=quantize.output_dtype, **before)
    before = {"scale": dequantize.scale, "zero_point": dequantize.zero_point, "before_op": dequantize}
    values = mb.dequantize(input=integers, **before)
    if view.op_type == "reshape":
        result = mb.reshape(x=values, shape=view.shape, before_op=dequantize)
    else:
        result = mb.transpose(x=values, perm=view.perm, before_op=dequantize)
    block.replace_uses_of_var_after_op(anchor_op=dequantize, old_var=dequantize.outputs[0], new_var=result)
    for unused in (dequantize, quantize, view):
        if not unused.outputs[0].child_ops and unused.outputs[0] not in block.outputs:
            block.remove_ops([unused])
    return values.op


class CountedFromTheFront(AbstractGraphPass):
    """Writes the axes of transposes as numbers that are not negative.

    Core ML Tools itself counts some axes from the back, and then looks for the axis of a weight's scales, counted from
    the front, among those of the transpose behind it.
    """

    def apply(self, prog: Any) -> None:
        """Replaces, in place, every transpose with a negative axis."""
        for function in prog.functions.values():
            with function, mb.scope(*NO_ORIGIN):
                for operation in list(function.operations):
                    if operation.op_type == "transpose" and np.any(operation.perm.val < 0):
                        _count_from_the_front(function, operation)


def _count_from_the_front(block: Any, transpose: Any) -> None:
    order = transpose.perm.val % transpose.x.rank
    result = mb.transpose(x=transpose.x, perm=order, before_op=transpose, name=transpose.name)
    block.replace_uses_of_var_after_op(anchor_op=transpose, old_var=transpose.outputs[0], new_var=result)
    block.remove_ops([transpose])


class ExactAffineMaps(AbstractGraphPass):
    """Makes a batch norm of a product and a sum, as Core ML Tools does, without changing the factors.

    Core ML Tools gives it a variance of one and the default epsilon, which is added to the variance: every factor gets
    smaller by 5e-6, enough to move values across rounding boundaries (pre-activation ResNet-10, W8A8: 33 dB with that,
    76 dB without).
    """

    def apply(self, prog: Any) -> None:
        """Fuses in place."""
        earlier = set(_batch_norms(prog))
        PASS_REGISTRY[MAKES_BATCH_NORMS].apply(prog)
        for norm in _batch_norms(prog):
            if norm not in earlier:
                with norm.enclosing_block, mb.scope(*NO_ORIGIN):
                    _make_exact(norm.enclosing_block, norm)


def _batch_norms(prog: Any) -> list[Any]:
    functions = prog.functions.values()
    return [
        operation for function in functions for operation in function.operations if operation.op_type == "batch_norm"
    ]


def _make_exact(block: Any, norm: Any) -> None:
    given = {**norm.inputs, "epsilon": np.float32(SMALLEST_HALF)}
    result = mb.batch_norm(**given, before_op=norm, name=norm.name)
    block.replace_uses_of_var_after_op(anchor_op=norm, old_var=norm.outputs[0], new_var=result)
    block.remove_ops([norm])


for _class in (DistinctOutputs, ExactAffineMaps, LowRankQuantization, CountedFromTheFront):
    PASS_REGISTRY.add(_NAMESPACE, _class, override=True, name=None)

FINAL_PASSES = (f"{_NAMESPACE}::{DistinctOutputs.__name__}",)
"""Without these a model may be unreadable, whichever passes its compile specs name."""

LOW_RANK_QUANTIZATION = f"{_NAMESPACE}::{LowRankQuantization.__name__}"
COUNTED_FROM_THE_FRONT = f"{_NAMESPACE}::{CountedFromTheFront.__name__}"
EXACT_AFFINE_MAPS = f"{_NAMESPACE}::{ExactAffineMaps.__name__}"
