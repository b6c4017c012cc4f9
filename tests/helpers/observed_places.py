"""Where quantizers sit in a prepared model, told from the values that reach them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from coreml_quantizer.qat.layers.deferred_activation import DeferredActivation


@dataclass(frozen=True)
class Place:
    """A tensor that is quantized.

    Attributes:
        op: What makes it: the name of an operator or module, "input", or "weight".
        value: The tensor itself, flattened: the same in two models that compute the same, however they are built.
        scale: Of its quantizer, float64, flattened.
        zero_point: Same shape.
        unsigned: Whether it is stored as uint8.
    """

    op: str
    value: Tensor
    scale: Tensor
    zero_point: Tensor
    unsigned: bool

    def is_at(self, other: "Place") -> bool:
        """Whether both are the same tensor of the float model; views of it count as itself."""
        return self.value.shape == other.value.shape and torch.allclose(self.value, other.value, rtol=1e-4, atol=1e-5)


def places(prepared: GraphModule, batch: Tensor, kinds: tuple[type[nn.Module], ...]) -> list[Place]:
    """Runs `prepared` on `batch` and returns what reached its quantizers, each tensor once.

    Args:
        prepared: In eval mode, with observers on and nothing rounded.
        batch: An input.
        kinds: The classes of its quantizers.
    """
    seen: list[tuple[nn.Module, str, Tensor]] = []
    makers = {str(node.target): node for node in prepared.graph.nodes if node.op == "call_module"}

    def record(name: str, module: nn.Module, x: Tensor) -> None:
        seen.append((module, _op_before(prepared, makers.get(name)), x))

    with _hooks(prepared, kinds, record):
        prepared(batch)
    found: list[Place] = []
    for module, op, value in seen:
        scale, zero_point = module.calculate_qparams()  # type: ignore[operator]
        unsigned = int(getattr(module, "quantizer", module).quant_min) >= 0
        place = Place(op, value.flatten(), scale.double().flatten(), zero_point.flatten().long(), unsigned)
        if not any(place.is_at(other) for other in found):
            found.append(place)
    return found


@contextmanager
def _hooks(
    prepared: nn.Module, kinds: tuple[type[nn.Module], ...], record: Callable[[str, nn.Module, Tensor], None]
) -> Iterator[None]:
    def hook_for(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: record(name, module, inputs[0].detach().clone())

    handles = [
        module.register_forward_pre_hook(hook_for(name))
        for name, module in prepared.named_modules()
        if isinstance(module, kinds)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _op_before(prepared: GraphModule, call: Node | None) -> str:
    """Names what makes the input of a quantizer."""
    maker = call.args[0] if call is not None else None
    if not isinstance(maker, Node):
        return "weight"
    if maker.op == "placeholder":
        return "input"
    if maker.op == "get_attr":
        return "weight"
    if maker.op == "call_module":
        module = prepared.get_submodule(str(maker.target))
        return _name(module.op if isinstance(module, DeferredActivation) else type(module))
    return _name(maker.target)


def _name(what: Any) -> str:
    return str(getattr(what, "__name__", what)).partition(".")[0]
