"""Rules for upsampling operators."""

import torch

from coreml_quantizer.rules.registry import OpRule, Treatment

aten = torch.ops.aten

RULES = (
    *(
        OpRule(
            op,
            Treatment.SHARED,
            reason="repeats values without changing them",
            source="coremltools' LinearQuantizer shared-qparams patterns; values are copied",
        )
        for op in (
            aten.upsample_nearest1d,
            aten.upsample_nearest2d,
            aten.upsample_nearest3d,
            aten._upsample_nearest_exact1d,
            aten._upsample_nearest_exact2d,
            aten._upsample_nearest_exact3d,
        )
    ),
    *(
        OpRule(
            op,
            Treatment.SHARED,
            reason="its output lies within the range of its input",
            source="averages of neighbours, as average pools, which coremltools' LinearQuantizer lets share",
        )
        for op in (aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d)
    ),
    OpRule(
        aten.upsample_bicubic2d,
        Treatment.FLOAT,
        reason="its negative weights overshoot the range of its input",
        source="Keys 1981, cubic convolution; no pattern of coremltools' LinearQuantizer has it",
    ),
)
