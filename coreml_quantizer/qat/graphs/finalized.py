"""A converted graph that coremltools can convert too, after torch.jit.trace.

The TorchScript frontend of coremltools knows torch's quantized tensors, but not the operators of PT2E.
"""

import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter

from coreml_quantizer.errors import ExportError

_ops = torch.ops.quantized_decomposed

_QUANTIZED_DTYPES = MappingProxyType({torch.uint8: torch.quint8, torch.int8: torch.qint8})


class FinalizedGraphModule(GraphModule):
    """A converted graph that computes with torch's quantized tensors under torch.jit.trace, and as usual otherwise."""

    @classmethod
    def of(cls, converted: GraphModule) -> "FinalizedGraphModule":
        """Makes a finalized graph from the graph that `convert_pt2e` returns."""
        made = cls(converted, converted.graph)
        made.meta.update(converted.meta)
        made.training = False
        return made

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        """Evaluates the graph."""
        if torch.jit.is_tracing() and not keywords:  # type: ignore[attr-defined, no-untyped-call]
            with warnings.catch_warnings():
                # Weights are meant to be constants of the trace, and coremltools knows no other quantized tensors.
                warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
                warnings.filterwarnings("ignore", message="torch.quantize_per_tensor, torch.quantize_per_channel")
                return _Traced(self).run(*inputs)
        return super().__call__(*inputs, **keywords)


class _Traced(Interpreter):
    """An interpreter that evaluates a converted graph with torch's quantized tensors."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in _UNTRACEABLE:
            raise ExportError(
                f"{target} cannot go through torch.jit.trace and coremltools' TorchScript frontend, which knows 8-bit "
                "weights only. Lower the finalized model with partitioner.CoreMLPartitioner instead."
            )
        return _TRACEABLE.get(target, target)(*args, **kwargs)


def _quantize(x: Tensor, scale: float, zero_point: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
    return torch.quantize_per_tensor(x, scale, zero_point, _QUANTIZED_DTYPES[dtype])


def _dequantize(x: Tensor, scale: float, zero_point: int, *_: Any, **__: Any) -> Tensor:
    if x.is_quantized:
        return x.dequantize()
    weight = _weight(x, np.float32(scale), np.float32(zero_point))
    return torch.quantize_per_tensor(weight, scale, zero_point, _QUANTIZED_DTYPES[x.dtype]).dequantize()


def _dequantize_channels(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, *_: Any, **__: Any) -> Tensor:
    shape = [1] * x.ndim
    shape[axis] = -1
    weight = _weight(x, scale.numpy().reshape(shape), zero_point.numpy().reshape(shape))
    return torch.quantize_per_channel(weight, scale, zero_point, axis, _QUANTIZED_DTYPES[x.dtype]).dequantize()


def _weight(stored: Tensor, scale: Any, zero_point: Any) -> Tensor:
    """Returns the dequantized weight.

    Tracing does not see numpy, which computes the weight, so the weight is a constant of the trace.
    """
    return torch.from_numpy(((stored.numpy().astype(np.float32) - zero_point) * scale).astype(np.float32))


_TRACEABLE: Mapping[Any, Callable[..., Tensor]] = MappingProxyType(
    {
        _ops.quantize_per_tensor.default: _quantize,
        _ops.dequantize_per_tensor.default: _dequantize,
        _ops.dequantize_per_channel.default: _dequantize_channels,
    }
)
_UNTRACEABLE = frozenset({torch.ops.torchao.dequantize_affine.default})
