"""Agreement of the ranks of a process group on ranges and batch-norm statistics."""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from coreml_quantizer.errors import QuantizerError
from coreml_quantizer.estimators import MinMaxObserver, MovingAverageObserver
from coreml_quantizer.qat.layers.batch_norm import BatchNorm
from coreml_quantizer.qat.quantizers.estimated import FakeQuantize
from coreml_quantizer.qat.quantizers.learnable import LearnableFakeQuantize
from coreml_quantizer.qat.schedule import Scheduled
from coreml_quantizer.qat.several_ranks import several_ranks


def agree(modules: Iterable[Scheduled]) -> None:
    """Gives all ranks the same ranges and batch-norm statistics; does nothing without a process group.

    Moving averages and batch-norm statistics become their mean over the ranks. Smallest and largest values become those
    over all ranks. Each kind takes one or two collectives. Learned steps are parameters, which data-parallel training
    keeps equal. Only their first value becomes the mean, because every rank takes it from its own first batch.

    Args:
        modules: The same modules in the same order on every rank.

    Raises:
        QuantizerError: Some estimators cannot be merged at every step; the message lists the tensors.
    """
    if not several_ranks():
        return
    modules = list(modules)
    quantizers = [module for module in modules if isinstance(module, FakeQuantize)]
    following = [q for q in quantizers if q.observes and not isinstance(q, LearnableFakeQuantize)]
    _check_mergeable(following)
    _agree_on_new_steps([quantizer for quantizer in quantizers if isinstance(quantizer, LearnableFakeQuantize)])
    _agree_on_averages([q for q in following if isinstance(q.observer, MovingAverageObserver)])
    _agree_on_extremes([q for q in following if isinstance(q.observer, MinMaxObserver)])
    for quantizer in following:
        if quantizer.known:
            quantizer.refresh()
    _exchange([tensor for module in modules if isinstance(module, BatchNorm) for tensor in module.take_new()], _mean)


def _check_mergeable(quantizers: Iterable[FakeQuantize]) -> None:
    found = [q for q in quantizers if not isinstance(q.observer, MovingAverageObserver | MinMaxObserver)]
    if found:
        names = ", ".join(f"'{q.tensor_name}' ({type(q.observer).__name__})" for q in found)
        raise QuantizerError(
            f"These tensors have estimators whose statistics cannot be merged at every step of data-parallel training: "
            f"{names}. Use 'moving_average' or 'min_max', or a milestone that turns observers off."
        )


def _agree_on_averages(quantizers: Sequence[FakeQuantize]) -> None:
    """Takes the mean over the ranks that saw values; a rank whose share of a batch was empty saw none."""
    known = [quantizer.known for quantizer in quantizers for _ in range(2)]
    bounds = [bound for quantizer in quantizers for bound in quantizer.observer.running_range()]
    seen = [torch.full_like(bound, is_known) for bound, is_known in zip(bounds, known, strict=True)]
    sums = [torch.where(count > 0, bound, 0.0) for bound, count in zip(bounds, seen, strict=True)]
    _exchange([*sums, *seen], dist.all_reduce)
    for bound, total, count in zip(bounds, sums, seen, strict=True):
        bound.copy_(torch.where(count > 0, total / count, bound))


def _agree_on_extremes(quantizers: Sequence[FakeQuantize]) -> None:
    ranges = [quantizer.observer.running_range() for quantizer in quantizers]
    _exchange([low for low, _ in ranges], _minimum)
    _exchange([high for _, high in ranges], _maximum)


def _agree_on_new_steps(quantizers: Sequence[LearnableFakeQuantize]) -> None:
    new = [quantizer for quantizer in quantizers if quantizer.take_new()]
    _exchange([quantizer.step.data for quantizer in new if not quantizer.is_sharded], _mean)
    sharded = [quantizer for quantizer in new if quantizer.is_sharded]
    _exchange([quantizer.start for quantizer in sharded], _mean)
    for quantizer in sharded:
        quantizer.restart()
    _exchange([quantizer.zero_point for quantizer in new], _minimum)


def _exchange(tensors: Sequence[Tensor], reduce: Callable[[Tensor], object]) -> None:
    """Reduces many tensors of any shapes over the ranks in one call, in place."""
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
