"""The choice of a fake quantizer for the tensor of an observer."""

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
    """Returns a fake quantizer for the tensor of `observer`; it takes over the observer.

    Args:
        observer: An estimator of this package, or torchao's module for a fixed scale and zero point.
        weight: The weight that is quantized; None for an activation.
    """
    if isinstance(observer, FixedQParamsFakeQuantize):
        return FixedFakeQuantize(observer)
    assert isinstance(observer, RangeObserver)
    if type(observer) in _COMPRESSORS:
        return _COMPRESSORS[type(observer)](observer)
    kind = LearnableFakeQuantize if observer.spec.training.learnable else FakeQuantize
    return kind(observer, weight)
