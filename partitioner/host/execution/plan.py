"""Plans: a function's operations as a flat list of steps over numbered slots. A plan is never modified by a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from partitioner.host.mil.model import Op

Environment: TypeAlias = list[Any]
Finish: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Argument:
    """A parameter whose value is known only during a run.

    Attributes:
        name: Parameter of the operation's function.
        slots: Slots of its values.
        variadic: Whether the function takes a tuple of them.
        convert: Turns the value into what the function takes, or None.
    """

    name: str
    slots: tuple[int, ...]
    variadic: bool
    convert: Callable[[Any], Any] | None


@dataclass(frozen=True)
class Step:
    """One operation, ready to run.

    Attributes:
        op: The operation, for messages.
        function: Its torch function.
        constants: Parameters that are known in advance.
        arguments: Parameters that are read from slots.
        outputs: Slots to write.
        finishes: The conversion of each output to its declared type, or None.
        frees: Slots that nothing reads after this step.
        blocks: Nested blocks; ``blocks_param`` is the parameter that takes them.
    """

    op: Op
    function: Callable[..., Any]
    constants: Mapping[str, Any]
    arguments: tuple[Argument, ...]
    outputs: tuple[int, ...]
    finishes: tuple[Finish | None, ...]
    frees: tuple[int, ...]
    blocks: "tuple[BlockPlan, ...]" = ()
    blocks_param: str | None = None


@dataclass(frozen=True)
class BlockPlan:
    """Steps of one block and the slots of its inputs and outputs."""

    inputs: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """A function, ready to run any number of times.

    Attributes:
        template: Initial content of the slots: constants, and None elsewhere.
        parameters: Slot of each parameter of the function.
        outputs: Slot of each output of its block by name.
        body: Its steps.
    """

    template: tuple[Any, ...]
    parameters: Mapping[str, int]
    outputs: Mapping[str, int]
    body: BlockPlan
