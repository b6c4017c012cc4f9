"""Precision policies: what happens to values that a program declares as half precision.

Core ML does not specify the precision in which a compute unit works, so every result belongs to a named policy. It
is never "what the device returns".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch

from partitioner.host.errors import PolicyError
from partitioner.host.mil.dtypes import DType

Rounding: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Policy:
    """A rule that turns values of a declared type into stored values.

    Attributes:
        name: Name under which `policies` holds it.
        summary: One sentence that says what the policy does.
        roundings: Data type name -> function applied to every value of that declared type when it is produced. It
            takes and returns a tensor of the data type's compute type.
        sequential: Whether sums of products declared half precision are accumulated in half precision, one product
            after another, by the operations that define it.
    """

    name: str
    summary: str
    roundings: Mapping[str, Rounding]
    sequential: bool = False

    def rounding(self, dtype: DType) -> Rounding | None:
        """Returns the rounding of values declared ``dtype``, or None when they are kept as computed."""
        return self.roundings.get(dtype.name)

    def __repr__(self) -> str:
        return f"Policy({self.name!r}: {self.summary})"


def round_to_half(x: torch.Tensor) -> torch.Tensor:
    """Rounds a float32 tensor to the nearest half-precision values, ties to even; the result stays float32."""
    return x.to(torch.float16).to(torch.float32)


FLOAT32 = Policy("float32", "half-precision values are computed and kept in float32, never rounded", {})
STORAGE16 = Policy(
    "storage16",
    "arithmetic in float32; every value declared fp16 is rounded to fp16 when it is produced",
    {"fp16": round_to_half},
)
SEQUENTIAL16 = Policy(
    "sequential16",
    "storage16, and linear, matmul, conv, reduce_sum and reduce_mean round every partial sum to fp16",
    {"fp16": round_to_half},
    sequential=True,
)

policies: dict[str, Policy] = {policy.name: policy for policy in (FLOAT32, STORAGE16, SEQUENTIAL16)}


def get_policy(policy: object) -> Policy:
    """Looks a policy up by name; a `Policy` is returned as it is.

    Raises:
        PolicyError: The name is unknown, or it is neither a name nor a `Policy`.
    """
    if isinstance(policy, Policy):
        return policy
    if not isinstance(policy, str) or policy not in policies:
        raise PolicyError(f"unknown precision policy {policy!r}; choose one of {sorted(policies)} or pass a Policy")
    return policies[policy]
