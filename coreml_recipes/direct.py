"""A quantizer that ExecuTorch's export session gives to torchao as it is.

The session wraps torchao's quantizers into a `ComposableQuantizer`, which keeps `prepare_obs_or_fq_callback` from them;
`CoreMLQuantizer` inserts its observers there. Quantizers of another class are passed on unwrapped, with a log line that
calls them deprecated.
"""

from typing import Any

from torch.fx import GraphModule
from torchao.quantization.pt2e.quantizer import Quantizer


class DirectQuantizer:
    """Does what a quantizer does, without being of its class.

    Args:
        quantizer: Does the work.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.quantizer!r})"

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Passed on."""
        return self.quantizer.transform_for_annotation(model)

    def annotate(self, model: GraphModule) -> GraphModule:
        """Passed on."""
        return self.quantizer.annotate(model)

    def validate(self, model: GraphModule) -> None:
        """Passed on."""
        self.quantizer.validate(model)

    def prepare_obs_or_fq_callback(self, model: GraphModule, observers: dict[Any, Any]) -> None:
        """Passed on."""
        self.quantizer.prepare_obs_or_fq_callback(model, observers)
