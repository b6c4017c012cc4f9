"""The one place where specs become torchao's quantization specs."""

from functools import cache

import torch
from torchao.quantization.pt2e.quantizer import (
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    QuantizationSpecBase,
)

from coreml_quantizer.estimators import ESTIMATORS, qscheme_of
from coreml_quantizer.specs import FixedSpec, TensorSpec


@cache
def to_torchao(spec: TensorSpec | FixedSpec) -> QuantizationSpecBase:
    """Returns the torchao spec that creates the observer of `spec`."""
    storage = spec.storage
    if isinstance(spec, FixedSpec):
        return FixedQParamsQuantizationSpec(
            dtype=storage.dtype,
            scale=spec.scale,
            zero_point=spec.zero_point,
            quant_min=storage.quant_min,
            quant_max=storage.quant_max,
            qscheme=torch.per_tensor_affine,
        )
    observer = ESTIMATORS[spec.estimator.name]
    return QuantizationSpec(
        dtype=storage.dtype,
        observer_or_fake_quant_ctr=observer.with_args(spec=spec, **dict(spec.estimator.arguments)),
        quant_min=storage.quant_min,
        quant_max=storage.quant_max,
        qscheme=qscheme_of(spec),
    )
