"""Rules for operators that move values without changing them."""

import operator
from typing import Any

import torch
from torch.fx import Node

from coreml_quantizer.rules.registry import Movement, OpPacket, OpRule, Treatment

aten = torch.ops.aten

_WHY = "moves values without changing them"
_SOURCE = "coremltools' LinearQuantizer shared-qparams patterns (flatten, identity, cat); values are copied"

_PAD_MODE, _PAD_VALUE = 2, 3


def _pads_with_values_of_its_range(node: Node) -> bool:
    """Returns whether pad(x, pad, mode, value) adds only values that the quantization grid of its input holds.

    Every grid holds zero, and reflected or replicated values are those of the input.
    """
    if node.target is aten.constant_pad_nd.default:
        return not (len(node.args) > _PAD_MODE and node.args[_PAD_MODE])
    mode = node.args[_PAD_MODE] if len(node.args) > _PAD_MODE else "constant"
    return mode != "constant" or not (len(node.args) > _PAD_VALUE and node.args[_PAD_VALUE])


def _keeps_its_type(node: Node) -> bool:
    source = node.args[0]
    return isinstance(source, Node) and source.meta["val"].dtype == node.meta["val"].dtype


def _whole(op: OpPacket, **row: Any) -> OpRule:
    return OpRule(op, Treatment.SHARED, moves=Movement.WHOLE, reason=_WHY, source=_SOURCE, **row)


def _parts(op: OpPacket, treatment: Treatment = Treatment.SHARED, reason: str = _WHY, **row: Any) -> OpRule:
    return OpRule(op, treatment, moves=Movement.PARTS, reason=reason, source=_SOURCE, **row)


RULES = (
    *(
        _parts(
            op,
            applies=_pads_with_values_of_its_range,
            otherwise="it pads with a value that the scale of its input may not hold",
            reason="adds zeros or copies of values; zero is exact under every scale and zero point",
        )
        for op in (aten.pad, aten.constant_pad_nd)
    ),
    *(
        _whole(op)
        for op in (
            *(aten.reshape, aten.view, aten._unsafe_view, aten.flatten, aten.unflatten, aten.ravel),
            *(aten.view_as, aten.reshape_as, aten.squeeze, aten.unsqueeze, aten.atleast_1d),
            *(aten.atleast_2d, aten.atleast_3d),
            *(aten.permute, aten.transpose, aten.t, aten.movedim, aten.moveaxis, aten.numpy_T, aten.mT),
            *(aten.swapaxes, aten.swapdims, aten.flip, aten.fliplr, aten.flipud, aten.roll, aten.rot90),
            *(aten.contiguous, aten.clone, aten.alias, aten.detach),
            *(aten.dropout, aten.dropout_, aten.feature_dropout, aten.alpha_dropout),
            *(aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle),
        )
    ),
    *(
        _parts(op)
        for op in (
            *(aten.slice, aten.select, aten.narrow, aten.index_select, aten.gather, aten.take_along_dim, aten.index),
            *(aten.unfold, aten.im2col),
            *(aten.expand, aten.expand_as, aten.broadcast_to, aten.repeat, aten.tile, aten.repeat_interleave),
        )
    ),
    *(
        _whole(op, applies=_keeps_its_type, otherwise="it changes the type of its input")
        for op in (aten.to, aten._to_copy, aten.type_as)
    ),
    *(
        _parts(op, Treatment.CONCATENATED)
        for op in (aten.cat, aten.stack, aten.hstack, aten.vstack, aten.dstack, aten.column_stack)
    ),
    *(
        _parts(op, Treatment.SPLIT)
        for op in (
            *(aten.split, aten.split_with_sizes, aten.chunk, aten.unbind, aten.tensor_split),
            *(aten.hsplit, aten.vsplit, aten.dsplit),
        )
    ),
    _parts(operator.getitem, reason="takes one part of a split"),
)
