"""Execution of a plan."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch

from partitioner.host.errors import ExecutionError, HostError
from partitioner.host.execution.plan import BlockPlan, Environment, Plan, Step
from partitioner.host.mil.model import Op


class Observer(Protocol):
    """A listener that is told about every operation of a run."""

    def now(self) -> int:
        """Returns the present time, in ticks of the observer's own clock."""

    def finished(self, op: Op, start: int, end: int, values: Sequence[Any]) -> None:
        """Takes note of an operation that has run; ``values`` are its outputs, which must not be changed."""


def run_plan(plan: Plan, inputs: dict[str, Any], observer: Observer | None = None) -> dict[str, Any]:
    """Runs a planned function once. Safe to call from several threads.

    Args:
        plan: The plan.
        inputs: A value for every parameter of the function; states are `State` objects and are written in place.
        observer: Is told about every step.

    Returns:
        The outputs of the function's block by name. They may share memory with inputs and constants.

    Raises:
        ExecutionError: An operation failed; the message names it.
    """
    environment = list(plan.template)
    for name, slot in plan.parameters.items():
        environment[slot] = inputs[name]
    with torch.no_grad():
        _run_steps(plan.body.steps, environment, observer)
    return {name: environment[slot] for name, slot in plan.outputs.items()}


def _run_steps(steps: Sequence[Step], environment: Environment, observer: Observer | None) -> None:
    step = None
    try:
        for step in steps:
            start = 0 if observer is None else observer.now()
            result = step.function(**step.constants, **_arguments(step, environment, observer))
            if len(step.outputs) == 1:
                finish = step.finishes[0]
                environment[step.outputs[0]] = result if finish is None else finish(result)
            elif step.outputs:
                _store(step, result, environment)
            if observer is not None:
                observer.finished(step.op, start, observer.now(), [environment[slot] for slot in step.outputs])
            for slot in step.frees:
                environment[slot] = None
    except HostError:
        raise
    except Exception as error:
        assert step is not None
        raise ExecutionError(_failure(step, environment, error)) from error


def _arguments(step: Step, environment: Environment, observer: Observer | None) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for argument in step.arguments:
        if argument.variadic:
            given[argument.name] = tuple([environment[slot] for slot in argument.slots])
        elif argument.convert is None:
            given[argument.name] = environment[argument.slots[0]]
        else:
            given[argument.name] = argument.convert(environment[argument.slots[0]])
    if step.blocks_param is not None:
        given[step.blocks_param] = tuple(_block_call(block, environment, observer) for block in step.blocks)
    return given


def _store(step: Step, results: Any, environment: Environment) -> None:
    for slot, finish, value in zip(step.outputs, step.finishes, results, strict=True):
        environment[slot] = value if finish is None else finish(value)


def _block_call(
    block: BlockPlan, environment: Environment, observer: Observer | None
) -> Callable[..., tuple[Any, ...]]:
    return partial(_run_block, block, environment, observer)


def _run_block(block: BlockPlan, environment: Environment, observer: Observer | None, *inputs: Any) -> tuple[Any, ...]:
    for slot, value in zip(block.inputs, inputs, strict=True):
        environment[slot] = value
    _run_steps(block.steps, environment, observer)
    return tuple([environment[slot] for slot in block.outputs])


def _failure(step: Step, environment: Environment, error: Exception) -> str:
    shapes = ", ".join(
        f"{argument.name}: {_describe(environment[slot])}" for argument in step.arguments for slot in argument.slots
    )
    return f"{step.op.type} {step.op.name!r} failed on ({shapes}): {error}"


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__
