"""The report on a lowering: which operations went to Core ML, which did not and why, and what would change that."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import coremltools as ct
from torch.fx import Node

from partitioner.graph.nodes import op_name, source_line
from partitioner.refusals import Refusal
from partitioner.support.compute import cost
from partitioner.support.requirements import Requirement, describe


@dataclass(frozen=True)
class ReportRow:
    """All uses of one operation that had the same result: Core ML took them, or did not for one reason.

    Attributes:
        op: The operation's full name.
        count: How often the operation occurs with this result.
        delegated: Whether Core ML takes it.
        reason: Why Core ML does not take it, or None.
        remedy: What would change that, when known.
        source: A line of the model's code that made the operation, when known.
    """

    op: str
    count: int
    delegated: bool
    reason: str | None = None
    remedy: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class LoweringReport:
    """The report on the lowering of one program.

    Attributes:
        rows: The operations; those outside Core ML come first, then those that occur most often.
        partitions: Number of delegate calls.
        target: Name of the deployment target; None for the oldest that runs ML programs.
        target_reasons: What in the program needs the target; empty when the user gave the target.
        compute_share: Share of the multiplications that Core ML does, 0 to 1.
        notes: What was stored or computed differently from what the program says, and why.
    """

    rows: tuple[ReportRow, ...]
    partitions: int
    target: str | None
    target_reasons: tuple[str, ...]
    compute_share: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain values, ready for JSON."""
        return asdict(self)

    @property
    def why_partitions(self) -> str:
        """The reason for the number of delegate calls."""
        outside = [row for row in self.rows if not row.delegated]
        if not outside:
            return "Core ML takes every operation"
        names = ", ".join(f"{row.count}x {row.op}" for row in outside)
        return f"these operators stay outside Core ML and divide the rest: {names}"

    def __str__(self) -> str:
        reasons = f" ({'; '.join(self.target_reasons)})" if self.target_reasons else ""
        lines = [
            f"{self.partitions} delegate call{'s' * (self.partitions != 1)}: {self.why_partitions}",
            f"{100 * self.compute_share:.1f} % of the multiplications in Core ML",
            f"deployment target: {self.target or 'the oldest that runs ML programs'}{reasons}",
        ]
        lines += [f"note: {note}" for note in self.notes]
        for row in self.rows:
            fate = "Core ML" if row.delegated else f"outside: {row.reason}"
            remedy = f"\n        remedy: {row.remedy}" if row.remedy else ""
            source = f"\n        at {row.source}" if row.source and not row.delegated else ""
            lines.append(f"  {row.count:5}  {row.op}  {fate}{remedy}{source}")
        return "\n".join(lines)


def make_report(
    decisions: Mapping[Node, Refusal | None],
    partitions: int,
    target: ct.target | None,
    needs: Sequence[Requirement],
    given: bool,
) -> LoweringReport:
    """Builds the report from the decision about every operation.

    Args:
        decisions: Every operation -> the reason why Core ML does not take it, or None.
        partitions: Number of delegate calls.
        target: The deployment target of the lowering.
        needs: What the program needs from the device.
        given: Whether the user gave the deployment target.
    """
    counts = Counter((op_name(node), found) for node, found in decisions.items() if "getitem" not in op_name(node))
    sources = {(op_name(node), found): source_line(node.meta.get("stack_trace")) for node, found in decisions.items()}
    rows = [
        ReportRow(op, count, True, source=sources[op, found])
        if found is None
        else ReportRow(op, count, False, found.reason, found.remedy, sources[op, found])
        for (op, found), count in counts.items()
    ]
    rows.sort(key=lambda row: (row.delegated, -row.count, row.op))
    total = sum(map(cost, decisions))
    taken = sum(cost(node) for node, reason in decisions.items() if reason is None)
    asked = () if given else describe(need for need in needs if need.target == target)
    return LoweringReport(
        tuple(rows), partitions, None if target is None else target.name, asked, taken / total if total else 1.0
    )
