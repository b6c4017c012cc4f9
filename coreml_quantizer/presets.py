"""Named configurations: functions that return a `QuantizerConfig`, which can be changed with `dataclasses.replace`.

The deployment targets named here are the oldest to which the form can be lowered. The advice on which form suits which
hardware is from the coremltools guide: "What's new" and "Overview" of Optimization, "Performance" of Linear
Quantization and of Palettization.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from coreml_quantizer.config import ActivationConfig, EstimatorConfig, LayerConfig, QuantizerConfig, WeightConfig
from coreml_quantizer.errors import ConfigError, near_matches


def w8a8() -> QuantizerConfig:
    """Returns the default: int8 weights per channel, uint8 activations per tensor.

    Target: iOS17, macOS14. It is faster on the Neural Engine of A17 Pro, M4 and newer, which multiply int8 by int8. On
    older ones activations cost a conversion at every layer, and `w8` is the better choice. Needs calibration.
    Activations take the affine scheme, because values that lean to one side would otherwise waste up to half of their
    256 levels.
    """
    return QuantizerConfig(LayerConfig(WeightConfig("int8"), ActivationConfig("uint8", "affine", _ACTIVATIONS)))


def w8a8_symmetric() -> QuantizerConfig:
    """Returns `w8a8` with the symmetric scheme, which is coremltools' default; non-negative values are still affine.

    Target: iOS17, macOS14.
    """
    return QuantizerConfig(LayerConfig(WeightConfig("int8"), ActivationConfig("uint8", "symmetric", _ACTIVATIONS)))


def w8() -> QuantizerConfig:
    """Returns int8 weights per channel, activations in floating point; no calibration.

    Target: iOS16, macOS13. The size is half of that in float16, at almost no loss. Latency improves if reading weights
    is the bottleneck, most of all on the Neural Engine.
    """
    return _weight_only(WeightConfig("int8"))


def w4() -> QuantizerConfig:
    """Returns int4 weights per channel, activations in floating point; no calibration.

    Target: iOS18, macOS15. The size is a quarter of that in float16. One scale for a whole channel usually costs
    accuracy, which `w4_block32` or training gives back.
    """
    return _weight_only(WeightConfig("int4", estimator=EstimatorConfig("mse")))


def w4_block32() -> QuantizerConfig:
    """Returns int4 weights with a scale for every 32 inputs of a channel, activations in floating point.

    Needs no calibration. Target: iOS18, macOS15. For the GPU of a Mac, for which the guide recommends blocks; the
    Neural Engine prefers tables (`lut4`). A weight whose number of inputs is not a multiple of 32 is quantized per
    channel.
    """
    return _weight_only(WeightConfig("int4", block_size=32, estimator=EstimatorConfig("mse")))


def lut8() -> QuantizerConfig:
    """Returns weights in a table of 256 values, activations in floating point; no calibration.

    Target: iOS16, macOS13.
    """
    return _weight_only(WeightConfig("lut8"))


def lut6() -> QuantizerConfig:
    """Returns weights in a table of 64 values, activations in floating point; no calibration.

    Target: iOS16, macOS13. On the Neural Engine this is usually the smallest form that loses almost no accuracy.
    """
    return _weight_only(WeightConfig("lut6"))


def lut4() -> QuantizerConfig:
    """Returns weights in a table of 16 values, activations in floating point; no calibration.

    Target: iOS16, macOS13. For the Neural Engine, which expands tables while it reads weights.
    """
    return _weight_only(WeightConfig("lut4"))


def lut4_group16() -> QuantizerConfig:
    """Returns weights in tables of 16 values, one for every 16 output channels; no calibration.

    Target: iOS18, macOS15. It loses less accuracy than `lut4` and is a little larger. A weight whose number of channels
    is not a multiple of 16 gets one table.
    """
    return _weight_only(WeightConfig("lut4", group_size=16))


def lut2() -> QuantizerConfig:
    """Returns weights in a table of 4 values, activations in floating point; rarely useful without training.

    Target: iOS16, macOS13.
    """
    return _weight_only(WeightConfig("lut2"))


_ACTIVATIONS = EstimatorConfig("automatic")

PRESETS: Mapping[str, Callable[[], QuantizerConfig]] = MappingProxyType(
    {
        preset.__name__: preset
        for preset in (w8a8, w8a8_symmetric, w8, w4, w4_block32, lut8, lut6, lut4, lut4_group16, lut2)
    }
)
"""Presets by name."""


def named(name: str) -> QuantizerConfig:
    """Returns the preset called `name`.

    Raises:
        ConfigError: There is no preset of that name.
    """
    if name not in PRESETS:
        hint = near_matches(name, PRESETS) or " QuantizerConfig.from_yaml reads a file."
        raise ConfigError(f"There is no preset {name!r}; there are {', '.join(PRESETS)}.{hint}")
    return PRESETS[name]()


def _weight_only(weight: WeightConfig) -> QuantizerConfig:
    return QuantizerConfig(LayerConfig(weight, None))
