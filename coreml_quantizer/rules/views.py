"""Operators that move values without changing them."""

import torch

from coreml_quantizer.rules.registry import OpRule, Treatment

aten = torch.ops.aten

_WHY = "moves values without changing them"
_SOURCE = "coremltools' LinearQuantizer shared-qparams patterns (flatten, identity, cat); values are copied"

RULES = (
    *(
        OpRule(op, Treatment.SHARED, reason=_WHY, source=_SOURCE)
        for op in (
            aten.reshape,
            aten.view,
            aten._unsafe_view,
            aten.flatten,
            aten.unflatten,
            aten.permute,
            aten.transpose,
            aten.t,
            aten.slice,
            aten.select,
            aten.narrow,
            aten.squeeze,
            aten.unsqueeze,
            aten.expand,
            aten.contiguous,
            aten.clone,
            aten.alias,
            aten.detach,
            aten.dropout,
            aten.dropout_,
            aten.upsample_nearest1d,
            aten.upsample_nearest2d,
            aten.upsample_nearest3d,
        )
    ),
    OpRule(aten.cat, Treatment.CONCATENATED, reason=_WHY, source=_SOURCE),
)
