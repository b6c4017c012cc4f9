"""Fake quantizers with a scale and zero point that the operator determines."""

from typing import Any

import torch
from torch import Tensor
from torchao.quantization.pt2e.fake_quantize import FixedQParamsFakeQuantize

from coreml_quantizer.process.lifecycle import refuse_export
from coreml_quantizer.qat.quantizers.base import FakeQuantizer
from coreml_quantizer.qat.quantizers.rounding import fake_quantize_tensor
from coreml_quantizer.qat.schedule import Mode
from coreml_quantizer.specs import INT8, UINT8, Scheme, TensorSpec


class FixedFakeQuantize(FakeQuantizer):
    """A fake quantizer with a scale and zero point that the operator before it, such as a sigmoid, determines."""

    def __init__(self, given: FixedQParamsFakeQuantize) -> None:
        """Takes over the scale and zero point of torchao's module."""
        storage = next(s for s in (UINT8, INT8) if s.dtype is given.dtype)
        super().__init__(TensorSpec(storage, Scheme.AFFINE))
        self.register_buffer("scale", given.scale.float().reshape(1))
        self.register_buffer("zero_point", given.zero_point.to(torch.int32).reshape(1))

    def forward(self, x: Tensor, mode: Mode = None) -> Tensor:
        """Fake-quantizes `x`, of any shape and float dtype."""
        refuse_export()
        return self.quantize(x) if self.quantizes else x

    def quantize(self, x: Tensor) -> Tensor:
        """Rounds `x` with the fixed scale and zero point."""
        return fake_quantize_tensor(x, self.scale, self.zero_point, self.quant_min, self.quant_max)

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        return self.scale, self.zero_point.to(torch.int64)
