"""Weights compressed by torchao's ``quantize_``: integers with one scale per block, or indices into lookup tables.

The converters of ExecuTorch and Core ML Tools take only matrices. They take only integers of the ranges -8..7 and
-128..127, and only lookup tables for whole groups of rows or columns of a matrix.
"""

from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.frontend.torch.utils import NUM_TO_TORCH_DTYPE

from partitioner.lowerings.registry import set_converter
from partitioner.lowerings.storage import affine_constant, storage_type, table_constant


@set_converter("torchao.dequantize_affine", "torchao::dequantize_affine")
def _dequantize_affine(context: Any, node: Any) -> None:
    data, blocks, scale, zero_point, dtype, *bounds = _get_inputs(context, node, min_expected=5)
    values = np.asarray(data.val)
    counts = [size // int(block) for size, block in zip(values.shape, blocks.val, strict=True)]
    scales = np.asarray(scale.val, np.float32).reshape(counts)
    offsets = np.zeros(counts, np.int32) if zero_point is None else np.asarray(zero_point.val).reshape(counts)
    declared = torch.iinfo(NUM_TO_TORCH_DTYPE[int(dtype.val)])
    given = [None if bound is None else int(bound.val) for bound in bounds[:2]] + [None, None]
    low = declared.min if given[0] is None else given[0]
    high = declared.max if given[1] is None else given[1]
    stored = storage_type(min(low, int(offsets.min())), max(high, int(offsets.max())), signed=declared.min < 0)
    context.add(affine_constant(values.astype(stored), scales, offsets, node.name), node.name)


@set_converter("quant.dequantize_codebook", "quant::dequantize_codebook")
def _dequantize_codebook(context: Any, node: Any) -> None:
    codes, tables = _get_inputs(context, node, min_expected=4)[:2]
    values = np.asarray(tables.val, np.float32)
    context.add(table_constant(np.asarray(codes.val), values, node.name), node.name)
