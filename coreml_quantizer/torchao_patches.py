"""The two places where torchao's code is changed while this package is imported, each with its reason.

A torchao without what is changed gets a warning that says what does not work with it.
"""

import warnings
from collections.abc import Callable
from importlib.metadata import version
from types import MethodType
from typing import Any

from torch import nn
from torch.fx import GraphModule
from torchao.quantization.pt2e import quantize_pt2e
from torchao.quantization.pt2e.export_utils import _EXPORTED_TRAINING_ATTR as MODE
from torchao.quantization.pt2e.quantizer import ComposableQuantizer, Quantizer

from coreml_quantizer.errors import QuantizerWarning
from coreml_quantizer.placement.decisions import has_decisions
from coreml_quantizer.placement.sharing import Place

_CALLBACK = "prepare_obs_or_fq_callback"
_DISALLOW = "_disallow_eval_train"


def apply() -> None:
    """Changes torchao; a second call does nothing."""
    if not _lacks(Quantizer, _CALLBACK, "no CoreMLQuantizer works"):
        _forward_callbacks()
    if not _lacks(quantize_pt2e, _DISALLOW, "converted models may refuse eval()"):
        _allow_evaluation()


def _lacks(owner: Any, name: str, consequence: str) -> bool:
    if hasattr(owner, name):
        return False
    warnings.warn(
        f"torchao {version('torchao')} has no {owner.__name__}.{name}, so {consequence}. coreml_quantizer is made for "
        'torchao 0.18: pip install "torchao>=0.18,<0.19".',
        QuantizerWarning,
        stacklevel=3,
    )
    return True


def _forward_callbacks() -> None:
    """Lets `ComposableQuantizer` ask its quantizers for observers, unless it does so itself."""
    if _CALLBACK not in vars(ComposableQuantizer):
        setattr(ComposableQuantizer, _CALLBACK, _ask_each)


def _ask_each(composed: Any, model: GraphModule, observers: dict[Place, nn.Module]) -> None:
    for quantizer in composed.quantizers:
        quantizer.prepare_obs_or_fq_callback(model, observers)


def _allow_evaluation() -> None:
    """Lets graphs that are in eval mode for good answer `eval()` and `train(False)`, which torchao refuses."""
    disallow: Callable[[GraphModule], GraphModule] = getattr(quantize_pt2e, _DISALLOW)
    if getattr(disallow, "allows_evaluation", False):
        return

    def disallow_training(model: GraphModule) -> GraphModule:
        model = disallow(model)
        if has_decisions(model) and not hasattr(model, MODE):
            model.train, model.eval = MethodType(_stay, model), MethodType(_stay_in_eval, model)  # type: ignore[method-assign]
        return model

    disallow_training.allows_evaluation = True  # type: ignore[attr-defined]
    setattr(quantize_pt2e, _DISALLOW, disallow_training)


def _stay(model: GraphModule, mode: bool = True) -> GraphModule:
    if mode:
        raise NotImplementedError(
            "This graph was exported in eval mode and cannot train. To train with quantization, use LinearQuantizer or "
            "prepare_qat_pt2e."
        )
    return model


def _stay_in_eval(model: GraphModule) -> GraphModule:
    return model
