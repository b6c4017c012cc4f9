"""Fake quantization of weights in front of a batch norm, in the form they have once the batch norm is folded in."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase

from coreml_quantizer.estimators import extremes
from coreml_quantizer.graph.values import constant_of
from coreml_quantizer.process.lifecycle import refuse_export
from coreml_quantizer.qat.quantizers.base import FakeQuantizer
from coreml_quantizer.qat.quantizers.estimated import FakeQuantize
from coreml_quantizer.qat.quantizers.numbers import eager_on_cpu, extremes_on_cpu
from coreml_quantizer.qat.quantizers.rounding import fake_quantize_blocks
from coreml_quantizer.qat.schedule import Mode
from coreml_quantizer.weights.compressor import replace, store

_NO_FACTOR = 1e-12
"""The smallest factor to divide by; a batch norm with a smaller factor makes its channel constant."""

_ONE = np.float32(1)

_ops = torch.ops.quantized_decomposed


def factor_of(weight: Tensor | None, variance: Tensor, eps: float) -> Tensor:
    """Returns the factor by which a batch norm multiplies each channel in evaluation; shapes (channels,)."""
    factor = torch.rsqrt(variance + eps)
    return factor if weight is None else factor * weight


class FoldedWeight(FakeQuantizeBase):
    """A fake quantizer that multiplies a weight by a factor, rounds the product, and divides by the factor again.

    The factor is the scale of the batch norm per channel. The batch norm therefore gets the same inputs as without
    quantization, except for rounding, and its statistics stay those of the float layer. Source of the idea:
    Krishnamoorthi 2018, section 3.2.2; dividing the weight instead of the layer's output costs nothing.
    """

    def __init__(self, quantizer: FakeQuantizer, axis: int, eps: float) -> None:
        """Wraps a quantizer.

        Args:
            quantizer: The fake quantizer of the folded weight.
            axis: Axis of the output channels.
            eps: The epsilon of the batch norm.
        """
        super().__init__()
        self.quantizer = quantizer
        self.axis = axis
        self.eps = eps

    @property
    def tensor_name(self) -> str:
        """Graph name of the weight."""
        return self.quantizer.tensor_name

    @tensor_name.setter
    def tensor_name(self, name: str) -> None:
        self.quantizer.tensor_name = name

    def forward(
        self, weight: Tensor, mode: Mode = None, norm_weight: Tensor | None = None, variance: Tensor | None = None
    ) -> Tensor:
        """Fake-quantizes a weight.

        Args:
            weight: A weight of any shape, with the output channels along `axis`.
            mode: Whether the model trains.
            norm_weight: Weight of the batch norm, shape (channels,); None for ones.
            variance: Running variance of the batch norm, shape (channels,).
        """
        refuse_export()
        factor = self._factor(weight, norm_weight, variance)
        quantizer = self.quantizer
        if type(quantizer) is FakeQuantize and quantizer.ch_axis == self.axis and quantizer.follows_extremes:
            if eager_on_cpu(weight) and weight.dtype is torch.float32:
                return self._per_channel_on_cpu(quantizer, weight, factor, mode)
            return self._per_channel(quantizer, weight, _divisible(factor), mode)
        factor = _divisible(factor)
        folded: Tensor = quantizer(weight * factor, mode)
        return folded / factor

    def _per_channel(self, quantizer: FakeQuantize, weight: Tensor, factor: Tensor, mode: Mode) -> Tensor:
        """Fake-quantizes a weight with the factor in the scale of each channel, which saves a pass over the weight."""
        if quantizer.observes and (mode is not False or not quantizer.known):
            first, second = (end * factor.reshape(-1) for end in extremes(weight.detach(), self.axis))
            quantizer.observer.update_range(torch.minimum(first, second), torch.maximum(first, second))
            quantizer.refresh()
        if not (quantizer.quantizes and quantizer.known):
            return weight
        scale = quantizer.scale.reshape(factor.shape) / factor
        zero_point = quantizer.zero_point.reshape(factor.shape)
        return fake_quantize_blocks(weight, scale, zero_point, quantizer.quant_min, quantizer.quant_max)

    def _per_channel_on_cpu(self, quantizer: FakeQuantize, weight: Tensor, shaped: Tensor, mode: Mode) -> Tensor:
        """Does the same as `_per_channel` with few calls, and does not clamp when no value needs it."""
        factor = shaped.numpy().reshape(-1)
        factor = np.where(np.abs(factor) < _NO_FACTOR, _ONE, factor)
        clips = True
        if quantizer.observes and (mode is not False or not quantizer.known):
            low, high = extremes_on_cpu(weight.detach(), self.axis)
            first, second = low.numpy() * factor, high.numpy() * factor
            lowest, highest = np.minimum(first, second), np.maximum(first, second)
            quantizer.observe_channels(lowest, highest)
            clips = quantizer.clips_between(lowest, highest)
        if not (quantizer.quantizes and quantizer.known):
            return weight
        scale = torch.from_numpy(quantizer.scale.numpy() / factor).reshape(shaped.shape)
        zero_point = quantizer.zero_point.reshape(shaped.shape)
        return fake_quantize_blocks(weight, scale, zero_point, quantizer.quant_min, quantizer.quant_max, clips)

    def calculate_qparams(self, **_: object) -> tuple[Tensor, Tensor]:
        """Returns the scale and zero point of the folded weight."""
        return self.quantizer.calculate_qparams()

    def convert(self, model: GraphModule, node: Node) -> None:
        """Replaces the call by the folded weight, quantized."""
        weight, norm_weight, variance = (constant_of(model, node.args[index]) for index in (0, 2, 3))
        assert weight is not None
        folded = weight * self._factor(weight, norm_weight, variance)
        with model.graph.inserting_before(node):
            node.args = (store(model, "_folded_weight", folded),)
        node.args[0].meta = dict(node.meta)
        convert = getattr(self.quantizer, "convert", None)
        if convert is not None:
            convert(model, node)
            return
        with model.graph.inserting_before(node):
            replace(model, node, _quantized_and_back(model, node.args[0], self.quantizer))

    def _factor(self, weight: Tensor, norm_weight: Tensor | None, variance: Tensor | None) -> Tensor:
        assert variance is not None
        shape = [1] * weight.ndim
        shape[self.axis] = -1
        return factor_of(norm_weight, variance, self.eps).detach().reshape(shape)


def _divisible(factor: Tensor) -> Tensor:
    return torch.where(factor.abs() < _NO_FACTOR, torch.ones_like(factor), factor)


def _quantized_and_back(model: GraphModule, weight: Any, quantizer: FakeQuantizer) -> Node:
    """Inserts a quantize call, which conversion evaluates, and a dequantize call; returns the latter."""
    scale, zero_point = quantizer.calculate_qparams()
    limits = (quantizer.quant_min, quantizer.quant_max, quantizer.dtype)
    grid: tuple[Any, ...]
    if quantizer.ch_axis < 0:
        grid = (float(scale), int(zero_point), *limits)
        pair = _ops.quantize_per_tensor.default, _ops.dequantize_per_tensor.default
    else:
        stored = store(model, "_folded_scale", scale), store(model, "_folded_zero_point", zero_point)
        grid = (*stored, quantizer.ch_axis, *limits)
        pair = _ops.quantize_per_channel.default, _ops.dequantize_per_channel.default
    quantized = model.graph.call_function(pair[0], (weight, *grid))
    return model.graph.call_function(pair[1], (quantized, *grid))
