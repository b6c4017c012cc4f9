"""What a lowering did: which operations went to Core ML, which did not and why, and what would change it."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import coremltools as ct
from torch.fx import Node

from partitioner.graph.nodes import op_name, source_line
from partitioner.support.compute import cost
from partitioner.support.requirements import Requirement, describe

# Pattern of a reason -> what mends it.
_REMEDIES = (
    (r"listed in skip_ops", "take it off skip_ops_for_coreml_delegation"),
    (r"conversion fails", "write the model with other operations, or choose a newer deployment target"),
    (r"cheap operation", "CoreMLPartitioner(delegate_islands=True)"),
    (r"no converter", "write the model with other operations"),
    (r"bfloat16", "convert the model: model.float()"),
    (r"takes no torch\.|returns no torch\.", "give the model float or int32 inputs and outputs"),
    (r"outside int32", "use smaller integers"),
    (r"rank", "merge dimensions before the operation"),
    (r"dimension order", "return contiguous tensors"),
    (r"constant", "take_over_constant_data=True, and no computed scales or tables"),
    (r"booleans only", "use arithmetic in place of bits"),
)


@dataclass(frozen=True)
class ReportRow:
    """One operation with one fate.

    Attributes:
        op: The operation's full name.
        count: How often it occurs with this fate.
        delegated: Whether Core ML takes it.
        reason: Why not, or None.
        remedy: What would change that, when known.
        source: A line of the model that made it, when known.
    """

    op: str
    count: int
    delegated: bool
    reason: str | None = None
    remedy: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class LoweringReport:
    """What became of one program.

    Attributes:
        rows: Operations, those outside Core ML first, then by count.
        partitions: Number of delegate calls.
        target: Name of the deployment target; None for the oldest that runs ML programs.
        target_reasons: What in the program asks for the target, when it was not given.
        compute_share: Share of the multiplications that Core ML does, 0 to 1.
        notes: What was stored or computed otherwise than the program says, and why.
    """

    rows: tuple[ReportRow, ...]
    partitions: int
    target: str | None
    target_reasons: tuple[str, ...]
    compute_share: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return asdict(self)

    @property
    def why_partitions(self) -> str:
        """Why the program has as many delegate calls as it has."""
        outside = [row for row in self.rows if not row.delegated]
        if not outside:
            return "Core ML takes every operation"
        names = ", ".join(f"{row.count}x {row.op}" for row in outside)
        return f"what stays outside separates what does not: {names}"

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
    decisions: Mapping[Node, str | None],
    partitions: int,
    target: ct.target | None,
    needs: Sequence[Requirement],
    given: bool,
) -> LoweringReport:
    """Counts what was decided.

    Args:
        decisions: Every operation -> the reason why Core ML does not take it, or None.
        partitions: Number of delegate calls.
        target: The deployment target of the lowering.
        needs: What the program asks of the device.
        given: Whether the user gave the deployment target.
    """
    counts = Counter((op_name(node), reason) for node, reason in decisions.items() if "getitem" not in op_name(node))
    sources = {(op_name(n), reason): source_line(n.meta.get("stack_trace")) for n, reason in decisions.items()}
    rows = [
        ReportRow(op, count, reason is None, reason, _remedy(reason), sources[op, reason])
        for (op, reason), count in counts.items()
    ]
    rows.sort(key=lambda row: (row.delegated, -row.count, row.op))
    total = sum(map(cost, decisions))
    taken = sum(cost(node) for node, reason in decisions.items() if reason is None)
    asked = () if given else describe(need for need in needs if need.target == target)
    return LoweringReport(
        tuple(rows), partitions, None if target is None else target.name, asked, taken / total if total else 1.0
    )


def _remedy(reason: str | None) -> str | None:
    if reason is None:
        return None
    return next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, reason)), None)
