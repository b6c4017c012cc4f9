"""Access to the registry of torch converters in Core ML Tools."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import coremltools as ct
import torch
from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
from coremltools.converters.mil.frontend.torch.utils import TorchFrontend

import partitioner.stock  # registers ExecuTorch's converters, which ours replace  # noqa: F401

Converter = Callable[[Any, Any], None]

_NAMELESS = frozenset({"aten", "prim"})
"""Namespaces that Core ML Tools leaves out of converter names."""


def set_converter(*names: str) -> Callable[[Converter], Converter]:
    """Registers a converter for exported programs under several names, in place of the earlier converters.

    Traced programs (torch.jit) keep the converters of Core ML Tools. Their nodes are of another kind, and users who
    convert them do not expect this package to change the result.
    """

    def register(convert: Converter) -> Converter:
        for name in names:
            stock = _TORCH_OPS_REGISTRY.name_to_func_mapping.get(name)
            _TORCH_OPS_REGISTRY.set_func_by_name(_of_exported(convert, stock), name)
        return convert

    return register


def _of_exported(convert: Converter, stock: Converter | None) -> Converter:
    def dispatch(context: Any, node: Any) -> None:
        traced = stock is not None and context.frontend == TorchFrontend.TORCHSCRIPT
        (stock if traced and stock is not None else convert)(context, node)

    return dispatch


def get_converter(name: str) -> Converter:
    """Returns the registered converter of an operation, by its canonical name (``"softmax"``).

    Raises:
        KeyError: The operation has no converter.
    """
    return _TORCH_OPS_REGISTRY.name_to_func_mapping[name]


def wrap_converter(name: str, prepare: Callable[[Any], None]) -> None:
    """Makes the registered converter of an operation run `prepare` on the node first."""
    convert = get_converter(name)

    def wrapped(context: Any, node: Any) -> None:
        prepare(node)
        convert(context, node)

    set_converter(name)(wrapped)


@lru_cache(maxsize=4096)
def has_converter(target: Any) -> bool:
    """Returns whether a converter exists for the target of an fx node.

    Core ML Tools checks for support by the name without the namespace, but converts by the name with it. An operator of
    a library other than PyTorch is therefore looked up by its full name, as in the conversion.
    """
    if isinstance(target, torch._ops.OpOverload) and target.namespace not in _NAMELESS:
        name = f"{target._schema.name}.{target._overloadname}"
        return _TORCH_OPS_REGISTRY.get_func(name) is not None
    node = torch.fx.Graph().call_function(target)
    try:
        return bool(ct.converters.mil.frontend.torch.is_torch_fx_node_supported(node))
    except AssertionError:  # it asserts on names that end in "_", which includes __and__
        return False
