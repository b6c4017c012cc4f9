"""The conversion of specs to torchao's quantization specs."""

from functools import cache, partial

import torch
from torchao.quantization.pt2e.observer import FixedQParamsObserver, PartialWrapper
from torchao.quantization.pt2e.quantizer import (
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    QuantizationSpecBase,
)

from coreml_quantizer.estimators import ESTIMATORS, RangeObserver, qscheme_of
from coreml_quantizer.specs import FixedSpec, LookupTable, PerBlock, PerChannelGroup, TensorSpec
from coreml_quantizer.weights import BlockObserver, PaletteObserver


class FixedParameters(FixedQParamsQuantizationSpec, QuantizationSpec):
    """Fixed parameters that torchao takes as such, and tools that know no such specs take as a common spec.

    NNCF refuses every annotation that is no `QuantizationSpec`, which torchao's own class for fixed parameters is not.
    The fields are those of torchao's class.
    """

    observer_or_fake_quant_ctr = FixedQParamsObserver


@cache
def to_torchao(spec: TensorSpec | FixedSpec) -> QuantizationSpecBase:
    """Returns the torchao spec that creates the observer of `spec`."""
    storage = spec.storage
    if isinstance(spec, FixedSpec):
        return FixedParameters(
            dtype=storage.dtype,
            scale=spec.scale,
            zero_point=spec.zero_point,
            quant_min=storage.quant_min,
            quant_max=storage.quant_max,
            qscheme=torch.per_tensor_affine,
        )
    observer, arguments = _observer_of(spec)
    return QuantizationSpec(
        dtype=storage.dtype,
        observer_or_fake_quant_ctr=_Constructor(partial(observer, spec=spec, **arguments)),
        quant_min=storage.quant_min,
        quant_max=storage.quant_max,
        qscheme=qscheme_of(spec),
    )


class _Constructor(PartialWrapper):
    """A constructor of observers that is never copied; torchao would copy it twice for every observer."""

    def __deepcopy__(self, memo: object) -> "_Constructor":
        return self


def _observer_of(spec: TensorSpec) -> tuple[type[RangeObserver], dict[str, float]]:
    if isinstance(spec.storage, LookupTable):
        return PaletteObserver, {}
    if isinstance(spec.granularity, PerBlock | PerChannelGroup):
        return BlockObserver, {}
    return ESTIMATORS[spec.estimator.name], dict(spec.estimator.arguments)
