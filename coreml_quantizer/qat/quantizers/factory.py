"""Chooses the fake quantizer that trains what an observer calibrates."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor, nn
from torchao.quantization.pt2e.fake_quantize import FixedQParamsFakeQuantize

from coreml_quantizer.estimators import RangeObserver
from coreml_quantizer.qat.quantizers.base import FakeQuantizer
from coreml_quantizer.qat.quantizers.compressed_weight import BlockFakeQuantize, PaletteFakeQuantize
from coreml_quantizer.qat.quantizers.estimated import FakeQuantize
from coreml_quantizer.qat.quantizers.fixed import FixedFakeQuantize
from coreml_quantizer.qat.quantizers.learnable import LearnableFakeQuantize
from coreml_quantizer.weights import BlockObserver, PaletteObserver

_COMPRESSORS: Mapping[type[nn.Module], Callable[[RangeObserver], FakeQuantizer]] = MappingProxyType(
    {PaletteObserver: PaletteFakeQuantize, BlockObserver: BlockFakeQuantize}
)


def fake_quantizer_of(observer: nn.Module, weight: Tensor | None = None) -> FakeQuantizer:
    """Returns a fake quantizer for the tensor of `observer`, which it takes over.

    Args:
        observer: An estimator of ours, or torchao's module for a fixed grid.
        weight: What is quantized, if it is a weight.
    """
    if isinstance(observer, FixedQParamsFakeQuantize):
        return FixedFakeQuantize(observer)
    assert isinstance(observer, RangeObserver)
    if type(observer) in _COMPRESSORS:
        return _COMPRESSORS[type(observer)](observer)
    kind = LearnableFakeQuantize if observer.spec.training.learnable else FakeQuantize
    return kind(observer, weight)
