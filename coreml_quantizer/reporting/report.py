"""The report on a prepared model: decisions, costs and warnings."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from coreml_quantizer.config.policy import QuantizationPolicy
from coreml_quantizer.errors import QuantizerError
from coreml_quantizer.placement.decisions import Decision, decisions_of
from coreml_quantizer.reporting.costs import Costs, measure
from coreml_quantizer.reporting.effects import without_effect
from coreml_quantizer.reporting.modules import OUTCOMES, by_module, outcome, summary_rows
from coreml_quantizer.reporting.tables import render


@dataclass(frozen=True)
class Share:
    """A quantized part of a whole.

    Attributes:
        quantized: How much of it is quantized.
        total: All of it.
    """

    quantized: int
    total: int

    @property
    def fraction(self) -> float:
        """The quantized fraction, from 0 to 1; 0 when `total` is 0."""
        return self.quantized / self.total if self.total else 0.0


@dataclass(frozen=True)
class Report:
    """The report on one prepared model.

    Attributes:
        decisions: One for every operator call, in graph order.
        macs: Multiply-adds: those that read quantized activations, and all.
        weight_bytes: Bytes of float parameters and buffers before quantization: those that are quantized, and all.
        warnings: Messages about configuration entries without effect, and about block or group sizes that do not fit.
    """

    decisions: tuple[Decision, ...]
    macs: Share
    weight_bytes: Share
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as dicts, lists, strings and numbers."""
        return {
            "summary": {
                "outcomes": dict(Counter(decision.outcome for decision in self.decisions)),
                "macs": {**asdict(self.macs), "fraction": self.macs.fraction},
                "modules": {module: dict(counts) for module, counts in by_module(self.decisions).items()},
                "weight_bytes": {**asdict(self.weight_bytes), "fraction": self.weight_bytes.fraction},
            },
            "warnings": list(self.warnings),
            "operators": [{**asdict(decision), "weights": list(decision.weights)} for decision in self.decisions],
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """Returns the report as JSON, and writes it to `path` if given."""
        text = json.dumps(self.to_dict(), indent=2)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def to_text(self, everything: bool = False) -> str:
        """Returns the report as two tables, of operators and of modules, with a summary below.

        Args:
            everything: Whether to list also operators that no configuration can quantize, such as those on integers.
        """
        shown = [found for found in self.decisions if everything or found.entry is not None]
        rows = [
            (found.node, found.op.removeprefix("aten."), found.module, outcome(found), found.entry or "", found.reason)
            for found in shown
        ]
        hidden = len(self.decisions) - len(shown)
        left_out = [f"Operators on integers, masks or constants that are not listed: {hidden}."] if hidden else []
        modules = render(("module", *OUTCOMES), summary_rows(shown), ())
        warnings = [f"Warning: {text}" for text in self.warnings]
        return render(_COLUMNS, rows, [modules, *self._summary(), *left_out, *warnings])

    def _summary(self) -> Iterable[str]:
        outcomes = Counter(outcome(decision) for decision in self.decisions)
        yield ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()) or "no operators"
        yield f"{self.macs.fraction:.1%} of {self.macs.total:,} multiply-adds read quantized activations"
        yield f"{self.weight_bytes.fraction:.1%} of {self.weight_bytes.total:,} bytes of weights are quantized"

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return f"<Report: {'; '.join(self._summary())}>"


_COLUMNS = ("node", "operator", "module", "outcome", "by", "why")


def make_report(prepared: GraphModule, policy: QuantizationPolicy) -> Report:
    """Returns the report on a graph that `prepare_pt2e` returned for a quantizer with `policy`.

    Raises:
        QuantizerError: The graph is not one that a CoreMLQuantizer prepared, or is converted already.
    """
    if not isinstance(prepared, GraphModule):
        raise QuantizerError(f"A report is of a graph that prepare_pt2e returned, not of {type(prepared).__name__}.")
    decisions = decisions_of(prepared)
    costs: Costs = measure(prepared, decisions)
    return Report(
        decisions,
        Share(costs.quantized_macs, costs.macs),
        Share(costs.quantized_bytes, costs.bytes),
        (*without_effect(policy, decisions), *costs.misfits),
    )
