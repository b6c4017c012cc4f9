"""Refusals: why Core ML does not take an operation, and what would change that."""

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """Kinds of refusals. The value is the remedy, or None when the kind has no common remedy."""

    ARGUMENTS = None
    """Core ML has no such operation, or not with these arguments."""

    SKIPPED = "take it off skip_ops_for_coreml_delegation"
    CONVERSION = "write the model with other operations, or choose a newer deployment target"
    SMALL_PARTITION = "CoreMLPartitioner(delegate_islands=True)"
    NO_CONVERTER = "write the model with other operations"
    DTYPE = "convert the model: model.float()"
    BOUNDARY_DTYPE = "give the model float or int32 inputs and outputs"
    WIDE_INTEGER = "use smaller integers"
    RANK = "merge dimensions before the operation"
    DIMENSION_ORDER = "return contiguous tensors"
    SIZE = "export with fixed sizes, or keep the operations between in Core ML"
    COMPUTED_OPERAND = "take_over_constant_data=True, and no computed scales or tables"
    INTEGER_BITS = "use arithmetic in place of bits"


@dataclass(frozen=True)
class Refusal:
    """A reason why Core ML does not take an operation.

    Attributes:
        kind: The kind of the refusal.
        reason: The reason for this operation, as a clause.
    """

    kind: Kind
    reason: str

    @property
    def remedy(self) -> str | None:
        """A change after which Core ML would take the operation, or None when unknown."""
        remedy: str | None = self.kind.value
        return remedy

    def __str__(self) -> str:
        return self.reason
