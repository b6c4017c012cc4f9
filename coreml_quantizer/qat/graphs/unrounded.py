"""A warning about models that are converted but never trained with rounding, because no milestone turned it on."""

import warnings
from collections import Counter
from collections.abc import Iterable

from coreml_quantizer.errors import QuantizerWarning
from coreml_quantizer.qat.quantizers.base import FakeQuantizer

_ROUNDING = 1
"""Position of 'fake quantization on' among the milestones."""


def warn_of_unrounded(quantizers: Iterable[FakeQuantizer]) -> None:
    """Warns about quantizers that never rounded although their milestones name a step for that."""
    quantizers = list(quantizers)
    missed: Counter[tuple[int, int]] = Counter()
    for quantizer in quantizers:
        milestones = quantizer.milestones
        rounded = quantizer.rounded or quantizer.quantizes
        if milestones is not None and milestones[_ROUNDING] >= 0 and not rounded:
            missed[milestones[_ROUNDING], quantizer.step_count] += 1
    for (milestone, steps), count in sorted(missed.items()):
        warnings.warn(
            f"{count} of {len(quantizers)} quantizers never rounded while the model trained: the milestone 'fake "
            f"quantization on' is step {milestone}, and step() was called {steps} times. The converted model rounds "
            "what was not trained to be rounded. Call quantizer.step() after each optimizer step, and choose "
            "milestones that the training reaches.",
            QuantizerWarning,
            stacklevel=2,
        )
