"""Configurations of the quantizer: each kind is read once into a `QuantizationPolicy`."""

import dataclasses
from collections.abc import Mapping

from coreml_quantizer.config.layers import ActivationConfig, EstimatorConfig, LayerConfig, WeightConfig
from coreml_quantizer.config.linear_checks import FIELDS
from coreml_quantizer.config.policy import QuantizationPolicy
from coreml_quantizer.config.quantizer import QuantizerConfig, Skip
from coreml_quantizer.config.read_linear import read_linear_quantizer_config
from coreml_quantizer.config.read_quantizer import read_quantizer_config
from coreml_quantizer.errors import near_matches

__all__ = [
    "ActivationConfig",
    "EstimatorConfig",
    "LayerConfig",
    "QuantizationPolicy",
    "QuantizerConfig",
    "Skip",
    "WeightConfig",
    "read_config",
]

_OWN_FIELDS = frozenset(field.name for field in dataclasses.fields(QuantizerConfig))


def read_config(config: object) -> QuantizationPolicy:
    """Reads and checks a configuration of any kind, and returns its policy.

    Args:
        config: A `QuantizerConfig`, a coremltools `LinearQuantizerConfig`, or a dict of the fields of either.

    Raises:
        ConfigError: It is none of these, or cannot be honoured; the message lists every reason.
    """
    if isinstance(config, Mapping) and _is_own(config):
        config = QuantizerConfig.from_dict(config)
    return (
        read_quantizer_config(config) if isinstance(config, QuantizerConfig) else read_linear_quantizer_config(config)
    )


def _is_own(config: Mapping[str, object]) -> bool:
    """Returns whether a dict has fields of `QuantizerConfig`.

    If all names are misspelled, the fields that they are close to decide.
    """
    if not _OWN_FIELDS.isdisjoint(config):
        return True
    names = [str(name) for name in config]
    return any(near_matches(name, _OWN_FIELDS) for name in names) and not any(near_matches(n, FIELDS) for n in names)
