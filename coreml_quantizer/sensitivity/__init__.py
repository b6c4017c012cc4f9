"""Sensitivity analysis: what quantizing each part of a model costs."""

from coreml_quantizer.sensitivity.analysis import analyze_sensitivity
from coreml_quantizer.sensitivity.result import ModuleSensitivity, Sensitivity

__all__ = ["ModuleSensitivity", "Sensitivity", "analyze_sensitivity"]
