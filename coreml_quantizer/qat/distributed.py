"""Ranges that are the same on all ranks of a process group."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from coreml_quantizer.estimators import MinMaxObserver, MovingAverageObserver
from coreml_quantizer.qat.fake_quantize import FakeQuantize
from coreml_quantizer.qat.learnable import LearnableFakeQuantize


def agree(quantizers: Sequence[FakeQuantize]) -> None:
    """Gives all ranks the same ranges; without a process group nothing happens.

    Moving averages become their mean over the ranks, extremes the extremes over all, in one collective each. Learned
    steps are parameters, which data-parallel training keeps alike; only their first value, which every rank takes from
    its own first batch, becomes the mean.

    Args:
        quantizers: The same ones in the same order on every rank.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    _agree_on_new_steps([quantizer for quantizer in quantizers if isinstance(quantizer, LearnableFakeQuantize)])
    following = [q for q in quantizers if q.observes and not isinstance(q, LearnableFakeQuantize)]
    for quantizer in following:
        _check_mergeable(quantizer)
    averaged = [q for q in following if isinstance(q.observer, MovingAverageObserver)]
    _exchange([bound for q in averaged for bound in q.observer.running_range()], _mean)
    extreme = [q for q in following if isinstance(q.observer, MinMaxObserver)]
    ranges = [q.observer.running_range() for q in extreme]
    _exchange([low for low, _ in ranges], _minimum)
    _exchange([high for _, high in ranges], _maximum)
    for quantizer in following:
        quantizer.refresh()


def _check_mergeable(quantizer: FakeQuantize) -> None:
    if not isinstance(quantizer.observer, MovingAverageObserver | MinMaxObserver):
        raise NotImplementedError(
            f"'{quantizer.tensor_name}' uses the estimator {type(quantizer.observer).__name__}, whose statistics "
            "cannot be merged at every step of data-parallel training. Use 'moving_average' or 'min_max'."
        )


def _agree_on_new_steps(quantizers: Sequence[LearnableFakeQuantize]) -> None:
    new = [quantizer for quantizer in quantizers if quantizer.take_new()]
    with torch.no_grad():
        _exchange([quantizer.step.data for quantizer in new], _mean)
    points = [quantizer.zero_point for quantizer in new]
    _exchange(points, _minimum)


def _exchange(tensors: Sequence[Tensor], reduce: Callable[[Tensor], None]) -> None:
    """Reduces many tensors of any shapes over the ranks, in place, as one."""
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    reduce(flat)
    for tensor, common in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(common.reshape(tensor.shape))


def _mean(flat: Tensor) -> None:
    dist.all_reduce(flat)
    flat /= dist.get_world_size()


def _minimum(flat: Tensor) -> None:
    dist.all_reduce(flat, dist.ReduceOp.MIN)


def _maximum(flat: Tensor) -> None:
    dist.all_reduce(flat, dist.ReduceOp.MAX)
