"""The MIL passes that a lowering runs."""

import coremltools as ct

from partitioner.conversion.passes import (
    COUNTED_FROM_THE_FRONT,
    EXACT_AFFINE_MAPS,
    FINAL_PASSES,
    LOW_RANK_QUANTIZATION,
    MAKES_BATCH_NORMS,
)

_REMOVED = frozenset({"common::distributive_quantized_binary_op_scale_normalization"})
"""The default passes that a lowering leaves out.

The pass divides the scales around a quantized addition by one of them. The quotients are no longer the calibrated
scales, and storing them in float16 moves values across rounding boundaries. The delegate then no longer agrees with the
converted graph (ResNet W8A8: 39 dB with the pass, 74 dB without)."""

_MERGES_TRANSPOSES = "common::merge_affine_dequantize_with_consecutive_ops"


def default_pipeline() -> ct.PassPipeline:
    """Returns the default passes of Core ML Tools and the passes of this package.

    Default passes that change what a quantized program computes are left out.
    """
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(_REMOVED)
    # The pass behind it moves quantizations behind reshapes.
    pipeline.insert_pass(pipeline.passes.index("common::int_op_canonicalization"), LOW_RANK_QUANTIZATION)
    pipeline.insert_pass(pipeline.passes.index(_MERGES_TRANSPOSES), COUNTED_FROM_THE_FRONT)
    position = pipeline.passes.index(MAKES_BATCH_NORMS)
    pipeline.remove_passes([MAKES_BATCH_NORMS])
    pipeline.insert_pass(position, EXACT_AFFINE_MAPS)
    return pipeline


def complete(pipeline: ct.PassPipeline) -> ct.PassPipeline:
    """Adds the passes without which the model may be unreadable; changes the pipeline in place and returns it."""
    for name in FINAL_PASSES:
        if name not in pipeline.passes:
            pipeline.append_pass(name)
    return pipeline
