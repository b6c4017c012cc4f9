"""Quantization for ExecuTorch's Core ML backend: decides what each tensor of an exported graph becomes."""

from coreml_quantizer import presets
from coreml_quantizer.calibration import calibrate
from coreml_quantizer.config import (
    ActivationConfig,
    EstimatorConfig,
    LayerConfig,
    QuantizerConfig,
    Skip,
    WeightConfig,
)
from coreml_quantizer.errors import (
    CalibrationError,
    ConfigError,
    ExportError,
    QuantizerError,
    QuantizerWarning,
    RuleError,
    ScopeError,
)
from coreml_quantizer.graph.batch_norm_folding import fold_batch_norms
from coreml_quantizer.linear_quantizer import LinearQuantizer
from coreml_quantizer.quantizer import CoreMLQuantizer
from coreml_quantizer.reporting import Report
from coreml_quantizer.rules import Movement, OpRule, OutputRange, Treatment, WeightRole, rules
from coreml_quantizer.sensitivity import ModuleSensitivity, Sensitivity, analyze_sensitivity

__all__ = [
    "ActivationConfig",
    "CalibrationError",
    "ConfigError",
    "CoreMLQuantizer",
    "EstimatorConfig",
    "ExportError",
    "LayerConfig",
    "LinearQuantizer",
    "ModuleSensitivity",
    "Movement",
    "OpRule",
    "OutputRange",
    "QuantizerConfig",
    "QuantizerError",
    "QuantizerWarning",
    "Report",
    "RuleError",
    "ScopeError",
    "Sensitivity",
    "Skip",
    "Treatment",
    "WeightConfig",
    "WeightRole",
    "analyze_sensitivity",
    "calibrate",
    "fold_batch_norms",
    "presets",
    "rules",
]
