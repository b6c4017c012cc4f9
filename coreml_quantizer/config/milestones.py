"""A check of the milestones of quantization-aware training."""

from collections.abc import Iterator
from typing import Any

_NAMES = ("observers on", "fake quantization on", "observers off", "batch-norm statistics frozen")


def milestone_problems(milestones: Any) -> Iterator[str]:
    """Yields what is wrong with `milestones`, each line starting with the field."""
    if milestones is None:
        return
    field = f"milestones={milestones!r}"
    if not isinstance(milestones, list | tuple) or len(milestones) != len(_NAMES):
        yield f"{field}: must be None or {len(_NAMES)} step counts: {', '.join(_NAMES)}; -1 for never."
        return
    if not all(isinstance(step, int) and not isinstance(step, bool) and step >= -1 for step in milestones):
        yield f"{field}: every entry must be a step count, 0 or more, or -1 for never."
        return
    observers_on, quantization_on, observers_off, _ = milestones
    if quantization_on >= 0 and not 0 <= observers_on <= quantization_on:
        yield f"{field}: 'fake quantization on' comes before 'observers on'; there would be no range to quantize to."
    if 0 <= observers_off < observers_on:
        yield f"{field}: 'observers off' comes before 'observers on'."
