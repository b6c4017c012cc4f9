"""Non-maximum suppression."""

import math

import torch

from partitioner.host.mil.dtypes import INT32
from partitioner.host.mil.model import Opset
from partitioner.host.registry import Tensors, register_op


@register_op("non_maximum_suppression", exact=True)
def non_maximum_suppression(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    iou_threshold: float,
    score_threshold: float,
    max_boxes: int,
    per_class_suppression: bool = False,
) -> Tensors:
    """Returns surviving boxes (n, B, 4) and scores (n, B, K), padded to ``max_boxes``, their indices and numbers."""
    kept = [
        _select(image, score, iou_threshold, score_threshold, max_boxes, per_class_suppression)
        for image, score in zip(boxes, scores, strict=True)
    ]
    return (
        torch.stack([_padded(image[chosen], max_boxes, 0) for image, chosen in zip(boxes, kept, strict=True)]),
        torch.stack([_padded(score[chosen], max_boxes, 0) for score, chosen in zip(scores, kept, strict=True)]),
        torch.stack([_padded(chosen, max_boxes, -1) for chosen in kept]).to(INT32.compute),
        torch.tensor([len(chosen) for chosen in kept], dtype=INT32.compute),
    )


@register_op("non_maximum_suppression", since=Opset.IOS17, exact=True)
def non_maximum_suppression_boxes_last(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    iou_threshold: float,
    max_boxes: int,
    per_class_suppression: bool = False,
) -> Tensors:
    """Returns the same without a score threshold and without numbers, for boxes (n, 4, B) and scores (n, K, B)."""
    selected, values, indices, _ = non_maximum_suppression(
        boxes.mT, scores.mT, iou_threshold, -math.inf, max_boxes, per_class_suppression
    )
    return selected.mT.contiguous(), values.mT.contiguous(), indices


def _select(
    boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float, score_threshold: float, limit: int, per_class: bool
) -> torch.Tensor:
    """Returns the indices of the surviving boxes, best first."""
    best, label = scores.max(-1)
    overlaps = _overlaps(boxes) > iou_threshold
    if per_class:
        overlaps = overlaps & (label[:, None] == label)
    kept: list[int] = []
    for candidate in torch.sort(best, descending=True, stable=True).indices.tolist():
        if len(kept) == limit or not best[candidate] > score_threshold:
            break
        if not overlaps[candidate, kept].any():
            kept.append(candidate)
    return torch.tensor(kept, dtype=torch.int64)


def _overlaps(boxes: torch.Tensor) -> torch.Tensor:
    """Returns the intersection over union of every pair of boxes, given by center and size; 0 where both are empty."""
    center, size = boxes[:, :2], boxes[:, 2:]
    low, high = center - size / 2, center + size / 2
    shared = (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp(min=0).prod(-1)
    area = size.prod(-1)
    union = area[:, None] + area - shared
    return torch.where(union > 0, shared / union, 0.0)


def _padded(values: torch.Tensor, count: int, filler: int) -> torch.Tensor:
    missing = values.new_full((count - len(values), *values.shape[1:]), filler)
    return torch.cat((values, missing))
