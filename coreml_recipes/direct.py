"""A quantizer that ExecuTorch's export session gives to torchao without wrapping it.

The session wraps torchao's quantizers into a `ComposableQuantizer`, which keeps `prepare_obs_or_fq_callback` from them;
`CoreMLQuantizer` inserts its observers there. Quantizers of another class are passed on unwrapped, with a log line that
calls them deprecated.
"""

from typing import Any

from torch.fx import GraphModule
from torchao.quantization.pt2e.quantizer import Quantizer


class DirectQuantizer:
    """A stand-in for a quantizer, of another class.

    Args:
        quantizer: The quantizer that every method is passed on to.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.quantizer!r})"

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Calls the quantizer's method of this name."""
        return self.quantizer.transform_for_annotation(model)

    def annotate(self, model: GraphModule) -> GraphModule:
        """Calls the quantizer's method of this name."""
        return self.quantizer.annotate(model)

    def validate(self, model: GraphModule) -> None:
        """Calls the quantizer's method of this name."""
        self.quantizer.validate(model)

    def prepare_obs_or_fq_callback(self, model: GraphModule, observers: dict[Any, Any]) -> None:
        """Calls the quantizer's method of this name."""
        self.quantizer.prepare_obs_or_fq_callback(model, observers)
