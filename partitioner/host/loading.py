"""Programs: how they are loaded and called."""

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, overload

import torch

import partitioner.host.ops  # noqa: F401  (registers the operations)
from partitioner.host.errors import InputError
from partitioner.host.execution.boundary import (
    check_count,
    check_data,
    check_names,
    checked_states,
    default_input,
    storage_addresses,
    to_caller,
    to_numpy,
    to_program,
)
from partitioner.host.execution.executor import Observer, run_plan
from partitioner.host.execution.images import from_image
from partitioner.host.execution.make_plan import check_supported, make_plan
from partitioner.host.execution.plan import Plan
from partitioner.host.execution.policy import STORAGE16, Policy, get_policy
from partitioner.host.execution.tracing import OpTrace, TraceRecorder
from partitioner.host.mil.model import Feature, Function, MilProgram
from partitioner.host.reading.open import Source, open_program
from partitioner.host.reading.source import naming
from partitioner.host.registry import State

States: TypeAlias = dict[str, State]


def load(
    source: Source, *, policy: str | Policy = STORAGE16, weights_dir: str | os.PathLike[str] | None = None
) -> "Program":
    """Loads a Core ML program for execution on this machine.

    Args:
        source: A ``.pte`` program with one Core ML delegate (bytes, path, or what ``to_executorch()`` returns), a
            delegate blob (bytes or path), the path of an ``.mlpackage`` directory, a coremltools ``MLModel`` that
            holds an ML Program, or a specification, which is what ``MLModel.get_spec()`` returns.
        policy: Precision policy: ``"storage16"`` or ``"float32"``, or a `Policy`.
        weights_dir: Folder with the weight files of a specification, as for ``MLModel``; not for other sources.

    Raises:
        InputError: The source is none of these.
        ProgramFormatError: The source is unreadable or no ML Program.
        UnsupportedMilOpError: The program uses operations that have no definition here.
        PolicyError: The policy is unknown.
    """
    chosen = get_policy(policy)
    origin = Path(source) if isinstance(source, (str, os.PathLike)) else None
    return Program(open_program(source, weights_dir), chosen, origin)


class Program:
    """A loaded program.

    A function is planned when it first runs: constants are decoded then, and shared by all later runs. Runs are safe
    from several threads; a state must not be used by two runs at a time.
    """

    def __init__(self, program: MilProgram, policy: Policy = STORAGE16, origin: Path | None = None) -> None:
        """Wraps a parsed program.

        Args:
            program: The program.
            policy: Precision policy.
            origin: Where it was read from, for messages.

        Raises:
            UnsupportedMilOpError: The program uses operations that have no definition.
        """
        check_supported(program.functions.values())
        self._program = program
        self._policy = policy
        self._origin = origin
        self._plans: dict[tuple[str, bool], tuple[Plan, frozenset[int]]] = {}
        self._lock = threading.Lock()

    @property
    def policy(self) -> Policy:
        """The precision policy under which it runs."""
        return self._policy

    def with_policy(self, policy: str | Policy) -> "Program":
        """Returns the same program under another policy.

        Raises:
            PolicyError: The policy is unknown.
        """
        return Program(self._program, get_policy(policy), self._origin)

    @property
    def functions(self) -> tuple[str, ...]:
        """Names of its functions, the default one first."""
        default = self._program.default_function
        return (default, *(name for name in self._program.functions if name != default))

    @property
    def inputs(self) -> tuple[Feature, ...]:
        """Inputs of the default function, in positional order."""
        return self._function(None).inputs

    @property
    def outputs(self) -> tuple[Feature, ...]:
        """Outputs of the default function, in positional order."""
        return self._function(None).outputs

    @property
    def mil(self) -> MilProgram:
        """The program as data."""
        return self._program

    def make_state(self, function: str | None = None) -> States:
        """Returns new states, filled with zeros, for the functions that read and write them.

        Args:
            function: Function whose states to make; the default one when None.

        Raises:
            InputError: There is no such function.
        """
        return {feature.name: State(default_input(feature)) for feature in self._function(function).states}

    @overload
    def predict(
        self, data: Mapping[str, Any], state: States | None = None, function: str | None = None
    ) -> dict[str, Any]: ...

    @overload
    def predict(
        self, data: Sequence[Mapping[str, Any]], state: None = None, function: str | None = None
    ) -> list[dict[str, Any]]: ...

    def predict(
        self,
        data: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        state: States | None = None,
        function: str | None = None,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Runs with named numpy arrays, as ``MLModel.predict`` does.

        Args:
            data: Input name -> array (PIL image where the input is an image), or a list of such dictionaries.
            state: What `make_state` returned, written in place; needed when the program has states. Not for lists.
            function: Function to run; the default one when None.

        Returns:
            Output name -> array of the declared type; a PIL image, string or dictionary where the output is one. For a
            list, one such dictionary for each of its entries.

        Raises:
            InputError: An input is missing, unknown, or of the wrong shape or type.
            ExecutionError: An operation failed.
        """
        chosen = self._function(function)
        check_data(chosen.inputs, data)
        if isinstance(data, Mapping):
            return self._predict(chosen, data, state)
        if state is not None:
            raise InputError("a state serves one prediction at a time; call predict(data, state) for each of the list")
        return [self._predict(chosen, entry, None) for entry in data]

    def trace(self, data: Mapping[str, Any], state: States | None = None, function: str | None = None) -> list[OpTrace]:
        """Runs as `predict` does, and returns what every operation computed and how long it took.

        Operations on constants are computed ahead of a run and do not appear.

        Args:
            data: Input name -> array.
            state: What `make_state` returned, written in place; needed when the program has states.
            function: Function to run; the default one when None.

        Raises:
            InputError: An input is missing, unknown, or of the wrong shape or type.
            ExecutionError: An operation failed.
        """
        chosen = self._function(function)
        recorder = TraceRecorder()
        self._predict(chosen, data, state, recorder)
        return recorder.traces

    def run(
        self,
        inputs: Sequence[torch.Tensor],
        state: States | None = None,
        function: str | None = None,
        observer: Observer | None = None,
    ) -> list[torch.Tensor]:
        """Runs with tensors by position.

        Args:
            inputs: Tensors in the order of ``inputs``.
            state: What `make_state` returned, written in place; needed when the program has states.
            function: Function to run; the default one when None.
            observer: Is told about every operation; every one then runs by itself, with the same bits.

        Returns:
            Tensors in the order of ``outputs``, of the declared types.

        Raises:
            InputError: The number of inputs, a shape or a type is wrong.
            ExecutionError: An operation failed.
        """
        chosen = self._function(function)
        check_count(chosen.inputs, inputs)
        given = {feature.name: value for feature, value in zip(chosen.inputs, inputs, strict=True)}
        return self._run(chosen, given, state, observer)

    def _predict(
        self, function: Function, data: Mapping[str, Any], state: States | None, observer: Observer | None = None
    ) -> dict[str, Any]:
        check_names(function.inputs, data)
        given = {
            feature.name: from_image(feature, data[feature.name]) if feature.kind == "image" else data[feature.name]
            for feature in function.inputs
            if feature.name in data
        }
        outputs = self._run(function, given, state, observer)
        pairs = zip(function.outputs, outputs, strict=True)
        return {feature.name: to_numpy(feature, value) for feature, value in pairs}

    def _run(
        self, function: Function, given: Mapping[str, Any], state: States | None, observer: Observer | None
    ) -> list[Any]:
        plan, constants = self._plan(function, fold=observer is None)
        values: dict[str, Any] = {
            feature.name: to_program(feature, given[feature.name], self._policy)
            if feature.name in given
            else default_input(feature)
            for feature in function.inputs
        }
        states = checked_states(function, state)
        produced = run_plan(plan, {**values, **states}, observer)
        kept = [*given.values(), *values.values(), *(held.value for held in states.values())]
        owned = storage_addresses(kept) | constants
        return [to_caller(feature, produced[feature.name], owned) for feature in function.outputs]

    def _plan(self, function: Function, *, fold: bool) -> tuple[Plan, frozenset[int]]:
        """Returns the plan of a function, and the addresses of its constants."""
        key = (function.name, fold)
        if key not in self._plans:
            with self._lock:
                if key not in self._plans:
                    with naming(self._origin):
                        plan = make_plan(function, self._policy, fold=fold)
                    self._plans[key] = (plan, storage_addresses(plan.template))
        return self._plans[key]

    def _function(self, name: str | None) -> Function:
        chosen = self._program.default_function if name is None else name
        if chosen not in self._program.functions:
            raise InputError(f"the program has no function {chosen!r}; pass function= one of {list(self.functions)}")
        return self._program.functions[chosen]

    def __repr__(self) -> str:
        inputs = ", ".join(feature.name for feature in self.inputs)
        outputs = ", ".join(feature.name for feature in self.outputs)
        return f"Program({', '.join(self.functions)}: ({inputs}) -> ({outputs}), policy {self._policy.name})"
