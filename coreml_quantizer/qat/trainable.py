"""A prepared graph whose `train()` and `eval()` do what those of any module do."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.fx import GraphModule
from torchao.quantization.pt2e.export_utils import _EXPORTED_TRAINING_ATTR as MODE

from coreml_quantizer.qat.fake_quantize import FakeQuantizer, Mode


class TrainableGraphModule(GraphModule):
    """Passes its mode on to batch norms, dropouts and fake quantizers; torchao's own graphs refuse to change mode."""

    @classmethod
    def of(cls, prepared: GraphModule) -> "TrainableGraphModule":
        """Makes one of what `prepare_qat_pt2e` returns, with the same parameters and modules."""
        made = cls(prepared, prepared.graph)
        made.meta.update(prepared.meta)
        return made.train(bool(getattr(prepared, MODE)))

    def train(self, mode: bool = True) -> "TrainableGraphModule":
        """Trains or evaluates from now on; returns the model."""
        setattr(self, MODE, mode)
        super().train(mode)
        return self

    @contextmanager
    def switched(self, mode: Mode, observes: bool, quantizes: bool) -> Iterator[None]:
        """Holds all fake quantizers in one state, and the model in one mode."""
        quantizers = [module for module in self.modules() if isinstance(module, FakeQuantizer)]
        before = [(quantizer.observes, quantizer.quantizes) for quantizer in quantizers]
        mode_before = getattr(self, MODE)
        setattr(self, MODE, mode)
        for quantizer in quantizers:
            quantizer.switch(observes, quantizes)
        try:
            yield
        finally:
            setattr(self, MODE, mode_before)
            for quantizer, (observed, quantized) in zip(quantizers, before, strict=True):
                quantizer.switch(observed, quantized)
