"""Sensitivity analysis: how much accuracy the quantization of each module costs."""

from coreml_quantizer.sensitivity.analysis import analyze_sensitivity
from coreml_quantizer.sensitivity.result import ModuleSensitivity, Sensitivity

__all__ = ["ModuleSensitivity", "Sensitivity", "analyze_sensitivity"]
