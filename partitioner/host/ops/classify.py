"""The output of classifiers."""

from typing import Any

import torch

from partitioner.host.registry import register_op


@register_op("classify", exact=True)
def classify(probabilities: torch.Tensor, classes: Any) -> tuple[Any, dict[Any, float]]:
    """Returns the most probable class, and the probability of each."""
    labels = [label.item() if isinstance(label, torch.Tensor) else label for label in classes]
    scores = probabilities.flatten().tolist()
    return labels[int(probabilities.flatten().argmax())], dict(zip(labels, scores, strict=True))
