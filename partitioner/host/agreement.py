"""One call that says what a program lost: against the graph that it was lowered from, and against the float model.

What is normal was measured on seven networks (``benchmarks/agreement.py``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from partitioner.host.errors import InputError
from partitioner.host.execution.policy import get_policy
from partitioner.host.executorch.runtime import run
from partitioner.host.reading.source import Given, bytes_or_path

Model = Callable[..., Any]

_NORMAL: Mapping[str, str] = MappingProxyType(
    {
        "float32": "70 dB and more: only constants and results are rounded to float16",
        "storage16": "35 to 65 dB; less in deep networks whose activations have 8 bits, where roundings add up",
        "float model": "25 to 40 dB with activations of 8 bits, 30 to 50 dB with weights of 8 bits alone",
    }
)
_ACCEPTED: Mapping[str, float] = MappingProxyType({"float32": 60.0, "storage16": 25.0, "float model": 20.0})
"""Comparison -> the decibels below which `Agreement` points a result out."""

_SMALLEST_HALF = 2.0**-24


@dataclass(frozen=True)
class Distance:
    """The distance between one output of a program and what it should be.

    Attributes:
        output: Position of the output.
        reference: "converted graph" or "float model".
        policy: Name of the precision policy of the program.
        decibels: Ratio of signal to noise, infinite when both are equal.
        largest: Largest absolute difference.
    """

    output: int
    reference: str
    policy: str
    decibels: float
    largest: float


@dataclass(frozen=True)
class Agreement:
    """The result of `measure_agreement`; printed, it says what is normal and what is not.

    Attributes:
        bytes: Size of the program.
        distances: One for each output, reference and policy.
        warnings: What is not normal, a sentence each.
    """

    bytes: int
    distances: tuple[Distance, ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.bytes:,} bytes"]
        lines += [
            f"output {found.output}, {found.policy}, against the {found.reference}: {found.decibels:.1f} dB, "
            f"at most {found.largest:.3g} off"
            for found in self.distances
        ]
        kinds = dict.fromkeys(map(_kind, self.distances))
        lines += [f"normal for {kind}: {_NORMAL[kind]}" for kind in kinds if kind in _NORMAL]
        return "\n".join([*lines, *(f"Warning: {text}" for text in self.warnings)])


def measure_agreement(
    program: Given,
    inputs: Sequence[Tensor],
    converted: Model | None = None,
    model: Model | None = None,
    policies: Sequence[str] = ("float32", "storage16"),
) -> Agreement:
    """Runs a program under several policies and compares it with what it was made from.

    Args:
        program: The `.pte`: its bytes, the path of a file, or what ``lower`` or ``to_executorch()`` returns.
        inputs: One tensor for each input.
        converted: The graph that was lowered, such as what `convert_pt2e` returns. Its distance is what lowering costs.
        model: The float model. Its distance is what quantizing and lowering cost together.
        policies: Names of precision policies, see ``partitioner.host.policies``.

    Raises:
        InputError: Neither `converted` nor `model` is given, or the inputs do not fit.
        PolicyError: A policy is unknown.
        HostError: The program cannot be read, or does not run.
    """
    references = {name: made for name, made in (("converted graph", converted), ("float model", model)) if made}
    if not references:
        raise InputError("there is nothing to compare with: give converted=, the graph that was lowered, or model=")
    names = [get_policy(policy).name for policy in policies]
    given = bytes_or_path(program, "a .pte")
    with torch.no_grad():
        expected = {name: _tensors(made(*inputs)) for name, made in references.items()}
    distances: list[Distance] = []
    warnings: dict[str, None] = {}
    for policy in names:
        results = [value for value in run(given, *inputs, policy=policy) if isinstance(value, Tensor)]
        for reference, values in expected.items():
            if len(values) != len(results):
                raise InputError(f"the program has {len(results)} outputs, and the {reference} has {len(values)}")
            for index, (value, result) in enumerate(zip(values, results, strict=True)):
                found = _distance(index, reference, policy, value, result)
                distances.append(found)
                warnings.update(dict.fromkeys(_warnings(found, value, result)))
    return Agreement(_size(given), tuple(distances), tuple(warnings))


def _kind(found: Distance) -> str:
    return found.policy if found.reference == "converted graph" else found.reference


def _warnings(found: Distance, value: Tensor, result: Tensor) -> list[str]:
    lines = []
    if result.is_floating_point() and not result.any() and value.any():
        smallest = float(value.abs().max())
        why = "; that is below the smallest number of float16" if smallest < _SMALLEST_HALF else ""
        lines.append(f"output {found.output} is zero everywhere, where the {found.reference} has {smallest:.3g}{why}")
    elif not torch.isfinite(result).all() and torch.isfinite(value).all():
        lines.append(f"output {found.output} has infinite numbers or NaN under {found.policy}")
    elif found.decibels < _ACCEPTED.get(_kind(found), -float("inf")):
        lines.append(
            f"output {found.output} is further from the {found.reference} under {found.policy} than is normal "
            f"({found.decibels:.1f} dB)"
        )
    return lines


def _distance(index: int, reference: str, policy: str, value: Tensor, result: Tensor) -> Distance:
    if value.shape != result.shape:
        raise InputError(f"output {index} has the shape {tuple(result.shape)}, and {tuple(value.shape)} in {reference}")
    right, made = value.double(), result.double()
    error = torch.where(right == made, 0.0, right - made)
    noise, signal = float(error.square().mean()), float(right.square().mean())
    decibels = float("inf") if noise == 0 else float(10 * torch.tensor(signal / noise).log10())
    return Distance(index, reference, policy, decibels, float(error.abs().max()) if error.numel() else 0.0)


def _tensors(values: Any) -> list[Tensor]:
    return [value.detach() for value in tree_leaves(values) if isinstance(value, Tensor)]


def _size(given: Any) -> int:
    return given.stat().st_size if isinstance(given, Path) else len(given)
