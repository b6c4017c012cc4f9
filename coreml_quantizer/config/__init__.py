"""Configurations: each kind is read once into a `QuantizationPolicy`."""

from coreml_quantizer.config.linear import read_linear_quantizer_config
from coreml_quantizer.config.policy import QuantizationPolicy

__all__ = ["QuantizationPolicy", "read_linear_quantizer_config"]
