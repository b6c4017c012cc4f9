"""The quantization of each recipe, by `CoreMLQuantizer` or by torchao."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from executorch.export import AOQuantizationConfig, QuantizationRecipe
from torch import nn
from torchao.prototype.quantization.codebook_coreml import CodebookWeightOnlyConfig
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.quantization.quant_api import IntxWeightOnlyConfig

from coreml_quantizer import CoreMLQuantizer, presets

Filter = Callable[[nn.Module, str], bool]

_GROUP = 32


def static(config: Any = None) -> QuantizationRecipe:
    """Returns the recipe of weights and activations in 8 bits, calibrated on the example inputs."""
    return _pt2e(presets.w8a8() if config is None else config)


def weight_only(config: Any = None) -> QuantizationRecipe:
    """Returns the recipe of weights in 8 bits with a scale for each channel."""
    return _pt2e(presets.w8() if config is None else config)


def channels(bits: int) -> Callable[..., QuantizationRecipe]:
    """Returns the recipe of linear layers' weights as integers, with a scale for each channel."""

    def make(filter_fn: Filter | None = None) -> QuantizationRecipe:
        config = IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=PerAxis(0))
        return _torchao(config, filter_fn)

    return make


def groups(bits: int) -> Callable[..., QuantizationRecipe]:
    """Returns the recipe of linear layers' weights as integers, with a scale for each group of inputs of a channel."""

    def make(group_size: int = _GROUP, filter_fn: Filter | None = None) -> QuantizationRecipe:
        config = IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=PerGroup(group_size))
        return _torchao(config, filter_fn)

    return make


def codebook(bits: int, block_size: list[int], filter_fn: Filter | None = None) -> QuantizationRecipe:
    """Returns the recipe of linear layers' and embeddings' weights in lookup tables."""
    config = CodebookWeightOnlyConfig(dtype=getattr(torch, f"uint{bits}"), block_size=block_size)
    return _torchao(config, _linear_or_embedding if filter_fn is None else filter_fn)


def problems(arguments: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with the values of the arguments given: for each, the first problem."""
    found = []
    for name, rules in _VALUES.items():
        broken = (allowed for fits, allowed in rules if name in arguments and not fits(arguments[name]))
        first = next(broken, None)
        if first is not None:
            found.append(f"{name}={arguments[name]!r} must be {first}")
    return found


def _pt2e(config: Any) -> QuantizationRecipe:
    return QuantizationRecipe(quantizers=[CoreMLQuantizer(config)])


def _torchao(config: Any, filter_fn: Filter | None) -> QuantizationRecipe:
    return QuantizationRecipe(
        ao_quantization_configs=[AOQuantizationConfig(ao_base_config=config, filter_fn=filter_fn)]
    )


def _linear_or_embedding(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_Rule = tuple[Callable[[Any], bool], str]

_VALUES: dict[str, tuple[_Rule, ...]] = {
    "bits": ((_is_integer, "an integer"), (lambda value: 1 <= value <= 8, "between 1 and 8")),
    "group_size": ((_is_integer, "an integer"), (lambda value: value > 0, "positive")),
    "block_size": (
        (
            lambda value: isinstance(value, list) and bool(value) and all(map(_is_integer, value)),
            "a list with one integer for each dimension, -1 for all of it",
        ),
    ),
    "filter_fn": ((callable, "a function of a module and its name"),),
}
