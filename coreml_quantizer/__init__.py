"""Quantization for ExecuTorch's Core ML backend: decides what each tensor of an exported graph becomes."""

from coreml_quantizer.errors import (
    CalibrationError,
    ConfigError,
    QuantizerError,
    QuantizerWarning,
    RuleError,
    ScopeError,
)
from coreml_quantizer.quantizer import CoreMLQuantizer
from coreml_quantizer.rules import OpRule, OutputRange, Treatment, WeightRole, rules

__all__ = [
    "CalibrationError",
    "ConfigError",
    "CoreMLQuantizer",
    "OpRule",
    "OutputRange",
    "QuantizerError",
    "QuantizerWarning",
    "RuleError",
    "ScopeError",
    "Treatment",
    "WeightRole",
    "rules",
]
