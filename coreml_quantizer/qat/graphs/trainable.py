"""A prepared graph whose `train()` and `eval()` work as those of any module."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.fx import GraphModule
from torchao.quantization.pt2e.export_utils import _EXPORTED_TRAINING_ATTR as MODE

from coreml_quantizer.errors import QuantizerError
from coreml_quantizer.qat.quantizers.base import FakeQuantizer
from coreml_quantizer.qat.schedule import Mode

_MOST_LISTED = 8


class TrainableGraphModule(GraphModule):
    """A graph that passes its mode on to batch norms, dropouts and fake quantizers.

    torchao's own graphs refuse to change mode.
    """

    @classmethod
    def of(cls, prepared: GraphModule) -> "TrainableGraphModule":
        """Makes a trainable graph of what `prepare_qat_pt2e` returns, with the same parameters and modules."""
        made = cls(prepared, prepared.graph)
        made.meta.update(prepared.meta)
        return made.train(bool(getattr(prepared, MODE)))

    def train(self, mode: bool = True) -> "TrainableGraphModule":
        """Sets training mode, or evaluation mode if `mode` is False; returns the model."""
        setattr(self, MODE, mode)
        super().train(mode)
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads the state of a checkpoint, all of it or nothing.

        Raises:
            QuantizerError: The checkpoint is of another model or configuration; the message lists the differences.
        """
        problems = [*self._other_tensors(state_dict, strict), *self._other_quantizers(state_dict)]
        if problems:
            more = f"; and {len(problems) - _MOST_LISTED} more" if len(problems) > _MOST_LISTED else ""
            raise QuantizerError(
                f"The checkpoint is not of this model and configuration: {'; '.join(problems[:_MOST_LISTED])}{more}. "
                "Nothing was loaded. Prepare the model and configuration that it was saved from."
            )
        return super().load_state_dict(state_dict, strict, assign)

    def _other_quantizers(self, state_dict: Mapping[str, Any]) -> Iterator[str]:
        for name, module in self.named_modules():
            if isinstance(module, FakeQuantizer):
                problem = module.mismatch(state_dict.get(f"{name}.description"))
                if problem is not None:
                    yield problem

    def _other_tensors(self, state_dict: Mapping[str, Any], strict: bool) -> Iterator[str]:
        own = self.state_dict().keys()
        lacking, foreign = own - state_dict.keys(), state_dict.keys() - own
        if strict and lacking:
            yield f"it lacks {len(lacking)} tensors, such as '{min(lacking)}'"
        if strict and foreign:
            yield f"it has {len(foreign)} tensors that the model has not, such as '{min(foreign)}'"
        for name, parameter in self.named_parameters():
            saved = state_dict.get(name)
            if saved is not None and saved.shape != parameter.shape:
                yield f"'{name}' has shape {tuple(saved.shape)} and should have {tuple(parameter.shape)}"

    @contextmanager
    def switched(self, mode: Mode, observes: bool, quantizes: bool) -> Iterator[None]:
        """Keeps all fake quantizers in one state, and the model in one mode, while the context is open."""
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
