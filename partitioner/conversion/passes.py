"""The MIL passes that this package adds to those of Core ML Tools."""

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
    """A pass that gives every output a separate value, and so a separate name.

    Other passes remove operations that do nothing or repeat another operation. Then two outputs can have the same
    value, or an output can be an input. But a model description names each of its inputs and outputs once.
    """

    def apply(self, prog: Any) -> None:
        """Copies each output that is also an input or an earlier output; changes the program in place."""
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
    """A pass that moves quantizations before the reshapes and transposes whose result has too high a rank for Core ML.

    Core ML has no tensors of rank 6 and more. Attention in windows has a reshape to such a rank, a transpose and a
    reshape back. A pass of Core ML Tools rewrites these three operations, but does not look through a quantization
    between them. Quantization per tensor commutes with reshapes and transposes, so this pass moves it to where the rank
    is still low.
    """

    def apply(self, prog: Any) -> None:
        """Moves every quantization of high rank towards the inputs; changes the program in place."""
        for function in prog.functions.values():
            with function, mb.scope(*NO_ORIGIN):
                for operation in list(function.operations):
                    moved: Any | None = operation
                    while moved is not None and _of_high_rank(moved):
                        moved = _moved_before_view(function, moved)


def _of_high_rank(operation: Any) -> bool:
    return operation.op_type == "dequantize" and operation.axis is None and operation.outputs[0].rank > HIGHEST_RANK


def _moved_before_view(block: Any, dequantize: Any) -> Any | None:
    """Moves a quantize and its dequantize before a view; returns the new dequantize, or None when there is no view."""
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
    """A pass that writes the axes of transposes as non-negative numbers.

    Core ML Tools itself counts some axes from the back. But it counts the axis of a weight's scales from the front, and
    looks for it among the axes of the transpose after the weight.
    """

    def apply(self, prog: Any) -> None:
        """Replaces every transpose that has a negative axis; changes the program in place."""
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
    """A pass that fuses a product and a sum into a batch norm, as Core ML Tools does, but without changing the factors.

    Core ML Tools gives the batch norm a variance of one and the default epsilon, which is added to the variance. Every
    factor gets smaller by 5e-6, which is enough to move values across rounding boundaries (pre-activation ResNet-10,
    W8A8: 33 dB with the default epsilon, 76 dB without).
    """

    def apply(self, prog: Any) -> None:
        """Fuses the products and sums; changes the program in place."""
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
"""The passes that every pipeline needs, whichever passes its compile specs name: a model may be unreadable without."""

LOW_RANK_QUANTIZATION = f"{_NAMESPACE}::{LowRankQuantization.__name__}"
COUNTED_FROM_THE_FRONT = f"{_NAMESPACE}::{CountedFromTheFront.__name__}"
EXACT_AFFINE_MAPS = f"{_NAMESPACE}::{ExactAffineMaps.__name__}"
