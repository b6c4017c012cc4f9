"""Fusion of a quantize and the dequantizes that read it into one step with the same bits.

Quantized programs round every activation through eight bits: as separate operations that is seven passes over memory
and two conversions, as one step it is four passes.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from partitioner.host.execution.plan import BlockPlan, Finish, Step
from partitioner.host.mil.dtypes import BY_NAME

_ZERO = torch.zeros(())


@dataclass(frozen=True)
class _Grid:
    """The numbers that a quantize and its dequantize share."""

    scale: float
    zero_point: int
    low: int
    high: int


def fold_quantization(steps: Sequence[Step], outputs: Collection[int]) -> list[Step]:
    """Fuses every quantize whose result is read only by dequantizes with the same single scale.

    Args:
        steps: The steps of one block, in order.
        outputs: Slots that are read after them.
    """
    readers = _readers(steps)
    folded: dict[int, Step] = {}
    dropped: set[int] = set()
    for index, step in enumerate(steps):
        grid = _grid(step)
        if grid is None or step.outputs[0] in outputs:
            continue
        users = readers.get(step.outputs[0], [])
        finish = steps[users[0]].finishes[0] if users else None
        if users and all(_inverts(steps[user], step, grid, finish) for user in users):
            folded[index] = _fold(step, [steps[user] for user in users], grid, finish)
            dropped.update(users)
    return [folded.get(index, step) for index, step in enumerate(steps) if index not in dropped]


def step_reads(step: Step) -> Iterable[int]:
    """Returns the slots that a step and its nested blocks read."""
    for argument in step.arguments:
        yield from argument.slots
    for block in step.blocks:
        yield from block_reads(block)


def block_reads(block: BlockPlan) -> Iterable[int]:
    """Returns the slots that the steps of a block read, and those of its outputs."""
    yield from block.outputs
    for step in block.steps:
        yield from step_reads(step)


def _readers(steps: Sequence[Step]) -> dict[int, list[int]]:
    readers: dict[int, list[int]] = {}
    for index, step in enumerate(steps):
        for slot in set(step_reads(step)):
            readers.setdefault(slot, []).append(index)
    return readers


def _grid(step: Step) -> _Grid | None:
    """Returns the grid of a quantize step, or None when it is no such step or has several scales."""
    if step.op.type != "quantize" or [argument.name for argument in step.arguments] != ["input"]:
        return None
    numbers = _scale_and_zero_point(step)
    if numbers is None:
        return None
    limits = torch.iinfo(BY_NAME[step.constants["output_dtype"]].compute)
    return _Grid(*numbers, limits.min, limits.max)


def _scale_and_zero_point(step: Step) -> tuple[float, int] | None:
    scale, zero_point = step.constants["scale"], step.constants.get("zero_point")
    if scale.dtype != torch.float32 or scale.numel() != 1 or (zero_point is not None and zero_point.numel() != 1):
        return None
    return float(scale), 0 if zero_point is None else int(zero_point)


def _inverts(step: Step, quantize: Step, grid: _Grid, finish: Finish | None) -> bool:
    return (
        step.op.type == "dequantize"
        and [argument.name for argument in step.arguments] == ["input"]
        and step.arguments[0].slots[0] == quantize.outputs[0]
        and _scale_and_zero_point(step) == (grid.scale, grid.zero_point)
        and step.finishes[0] is finish
    )


def _fold(quantize: Step, users: Sequence[Step], grid: _Grid, finish: Finish | None) -> Step:
    outputs = tuple(user.outputs[0] for user in users)
    inverse = quantize.constants["scale"].reciprocal().reshape(())
    function = partial(
        _quantize_dequantize,
        inverse=inverse,
        scale=grid.scale,
        low=grid.low - grid.zero_point,
        high=grid.high - grid.zero_point,
        finish=None if finish is None or _is_exact(grid, finish) else finish,
        copies=len(outputs),
    )
    return replace(quantize, function=function, constants={}, outputs=outputs, finishes=(None,) * len(outputs))


def _quantize_dequantize(
    input: torch.Tensor,
    *,
    inverse: torch.Tensor,
    scale: float,
    low: int,
    high: int,
    finish: Finish | None,
    copies: int,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Returns scale * clamp(round(input / scale), low, high), in the steps and so with the bits of `ops.quantize`.

    Adding and subtracting the zero point around the clamp is exact, so the clamp's limits carry it. The sum with zero
    turns a negative zero, which integers do not have, into zero.
    """
    levels = torch.mul(input, inverse).round_().clamp_(low, high)
    result = torch.add(_ZERO, levels, alpha=scale, out=levels)
    if finish is not None:
        result = finish(result)
    return result if copies == 1 else (result,) * copies


def _is_exact(grid: _Grid, finish: Finish) -> bool:
    """Returns whether no value of the grid is changed by rounding to the declared type."""
    values = torch.arange(grid.low - grid.zero_point, grid.high - grid.zero_point + 1, dtype=torch.float32) * grid.scale
    return torch.equal(finish(values), values)
