"""Rules for normalizations and softmax: all stay in floating point except batch norm.

A batch norm is folded into the layer before it. Without such a layer it becomes a multiplication and an addition.
"""

import torch

from coreml_quantizer.rules.registry import UNIT_INTERVAL, OpRule, Treatment

aten = torch.ops.aten

_SOURCE_FLOAT = "no pattern of coremltools' LinearQuantizer has it; Core ML computes it in float16"

RULES = (
    OpRule(
        aten.batch_norm,
        Treatment.BATCH_NORM,
        reason="folds into the layer before it; alone it becomes a multiplication and an addition, which are quantized",
        source="Krishnamoorthi 2018, section 3.2.2",
    ),
    *(
        OpRule(
            op,
            Treatment.FLOAT,
            reason="its mean and variance need more than eight bits; the layer behind it quantizes what it reads",
            source=_SOURCE_FLOAT,
        )
        for op in (aten.layer_norm, aten.rms_norm, aten.group_norm, aten.instance_norm, aten.native_layer_norm)
    ),
    OpRule(
        aten.softmax,
        Treatment.FLOAT,
        output_range=UNIT_INTERVAL,
        reason="eight bits of scores before an exponential cost more accuracy than they save time",
        source="coremltools' LinearQuantizer, fixed qparams of softmax outputs",
    ),
    OpRule(
        aten.log_softmax,
        Treatment.FLOAT,
        reason="eight bits of scores before an exponential cost more accuracy than they save time",
        source=_SOURCE_FLOAT,
    ),
)
