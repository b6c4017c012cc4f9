"""The distance between the results of precision policies: about as much as a device may differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from partitioner.host.errors import InputError
from partitioner.host.execution.policy import FLOAT32, SEQUENTIAL16, STORAGE16, Policy, get_policy
from partitioner.host.loading import Program, load
from partitioner.host.reading.open import Source

_DEFAULT = (FLOAT32, STORAGE16, SEQUENTIAL16)


@dataclass(frozen=True)
class Spread:
    """The distance between the results of several policies for one output.

    Attributes:
        output: Name of the output.
        results: Policy name -> its result.
        largest: Largest distance between any two policies at one element.
        mean: Mean over the elements of that distance.
        decibels: Policy name -> ratio of signal to noise against the first policy, infinite where they agree.
    """

    output: str
    results: Mapping[str, np.ndarray[Any, Any]]
    largest: float
    mean: float
    decibels: Mapping[str, float]

    def __str__(self) -> str:
        ratios = ", ".join(f"{name} {value:.1f} dB" for name, value in self.decibels.items())
        return f"{self.output}: largest {self.largest:.3g}, mean {self.mean:.3g}; {ratios}"


def compare_policies(
    program: Source, inputs: Mapping[str, Any], policies: Sequence[str | Policy] = _DEFAULT
) -> list[Spread]:
    """Runs a program under several policies and measures the distance between their results.

    Core ML does not specify the precision in which a compute unit works. Rely on what the policies agree on:
    a device may differ by about as much as they do.

    Args:
        program: A loaded program, whose own policy does not matter, or anything that `load` takes. States start from
            zeros.
        inputs: Input name -> array, as `Program.predict` takes them.
        policies: The policies; distances in decibels are to the first of them.

    Returns:
        One entry for each output that is an array of numbers.

    Raises:
        InputError: The inputs do not fit, or there are fewer than two policies.
        PolicyError: A policy is unknown.
        ProgramFormatError: The program cannot be read.
        UnsupportedMilOpError: It uses operations that have no definition here.
    """
    chosen = [get_policy(policy) for policy in policies]
    if len({policy.name for policy in chosen}) < 2:
        raise InputError(f"got the policies {[policy.name for policy in chosen]}; give at least two different ones")
    loaded = program if isinstance(program, Program) else load(program)
    results = {policy.name: _predict(loaded.with_policy(policy), inputs) for policy in chosen}
    names = [feature.name for feature in loaded.outputs if feature.kind == "tensor"]
    return [_spread(name, {policy: result[name] for policy, result in results.items()}) for name in names]


def _predict(program: Program, inputs: Mapping[str, Any]) -> dict[str, Any]:
    return program.predict(inputs, program.make_state() or None)


def _spread(output: str, results: dict[str, np.ndarray[Any, Any]]) -> Spread:
    values = np.stack([result.astype(np.float64) for result in results.values()])
    # Equal infinities are no distance apart.
    with np.errstate(invalid="ignore"):
        distance = np.nan_to_num(values.max(0) - values.min(0), nan=0.0, posinf=np.inf)
    decibels = {name: _decibels(values[0], value) for name, value in zip(results, values, strict=True)}
    del decibels[next(iter(results))]
    return Spread(output, results, float(distance.max(initial=0.0)), float(distance.mean()), decibels)


def _decibels(reference: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = np.square(np.where(reference == values, 0.0, reference - values)).mean()
        return float("inf") if noise == 0 else float(10 * np.log10(np.square(reference).mean() / noise))
