"""The report of `LinearQuantizer`: a line for every fake quantizer, with the columns of coremltools."""

import json
from collections import UserDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from coreml_quantizer.graph.values import evaluate
from coreml_quantizer.qat.quantizers.base import FakeQuantizer, Follower
from coreml_quantizer.qat.quantizers.folded_weight import FoldedWeight, factor_of
from coreml_quantizer.qat.quantizers.learnable import LearnableFakeQuantize
from coreml_quantizer.reporting import Report
from coreml_quantizer.reporting.tables import plain
from coreml_quantizer.specs import PerTensor

Row = dict[str, Any]

COLUMNS = ("type", "device", "algorithm", "qscheme", "per_channel", "dtype", "qmin", "qmax", "error", "#params")
"""The columns of coremltools' report."""


class TrainingReport(UserDict[str, Row]):
    """Statistics of the fake quantizers: a dict from the module of a weight, or the name of a quantizer, to a dict.

    Attributes:
        operators: The report on every operator: how it is quantized, or why it is not. None before `prepare`.
    """

    def __init__(self, rows: dict[str, Row], operators: Report | None) -> None:
        super().__init__()
        self.data = rows
        self.operators = operators

    def to_dict(self) -> dict[str, Any]:
        """Returns the statistics, and the report on operators, as dicts, lists, strings and numbers."""
        tensors = {name: {key: _plain(value) for key, value in row.items()} for name, row in self.data.items()}
        return {"tensors": tensors, **({} if self.operators is None else self.operators.to_dict())}

    def to_json(self, path: str | Path | None = None) -> str:
        """Returns the report as JSON, and writes it to `path` if given."""
        text = json.dumps(self.to_dict(), indent=2)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def to_text(self, everything: bool = False) -> str:
        """Returns the tables of the fake quantizers and of the operators.

        Args:
            everything: Whether to list also operators that no configuration can quantize.
        """
        below = "" if self.operators is None else self.operators.to_text(everything)
        return f"{self!r}\n\n{below}".strip()

    def __repr__(self) -> str:
        if not self.data:
            return ""
        return plain(("name", *COLUMNS), [(name, *(_cell(row[key]) for key in COLUMNS)) for name, row in self.items()])

    def __str__(self) -> str:
        return self.to_text()


def rows_of(prepared: GraphModule) -> dict[str, Row]:
    """Returns the statistics of every fake quantizer of a prepared graph, in running order."""
    with torch.no_grad():
        return dict(_rows(prepared))


def _rows(prepared: GraphModule) -> Iterator[tuple[str, Row]]:
    for node in prepared.graph.nodes:
        module = prepared.get_submodule(str(node.target)) if node.op == "call_module" else None
        quantizer = _quantizer_of(module)
        if quantizer is None:
            continue
        source = node.args[0]
        if isinstance(source, Node) and source.op == "get_attr":
            loss = _loss(quantizer, evaluate(source, prepared).detach(), _factor(prepared, node))
            yield str(source.target).removesuffix(".weight"), {**_common("weight", quantizer), **loss}
        else:
            yield str(node.target), {**_common("activation", quantizer), "error": float("nan"), "#params": -1}


def _quantizer_of(module: nn.Module | None) -> FakeQuantizer | None:
    """Returns the fake quantizer that rounds for `module`, None for other modules."""
    if isinstance(module, FoldedWeight):
        return module.quantizer
    if isinstance(module, Follower):
        return module.leader
    return module if isinstance(module, FakeQuantizer) else None


def _factor(prepared: GraphModule, call: Node) -> Tensor | float:
    """Returns the factor by which a batch norm multiplies a weight once it is folded, 1 where there is none."""
    module = prepared.get_submodule(str(call.target))
    if not isinstance(module, FoldedWeight):
        return 1.0
    values: list[Any] = [evaluate(a, prepared) if isinstance(a, Node) else a for a in call.args]
    weight, _, norm_weight, variance = values
    shape = [1] * weight.ndim
    shape[module.axis] = -1
    factor = factor_of(norm_weight, variance, module.eps).reshape(shape)
    return torch.where(factor == 0, torch.ones_like(factor), factor)


def _common(kind: str, quantizer: FakeQuantizer) -> Row:
    spec = quantizer.spec
    return {
        "type": kind,
        "device": _device(quantizer),
        "algorithm": "learnable" if isinstance(quantizer, LearnableFakeQuantize) else "vanilla",
        "qscheme": spec.scheme.value,
        "per_channel": not isinstance(spec.granularity, PerTensor),
        "dtype": quantizer.dtype,
        "qmin": quantizer.quant_min,
        "qmax": quantizer.quant_max,
    }


def _device(quantizer: nn.Module) -> torch.device:
    return next(quantizer.buffers()).device


def _loss(quantizer: FakeQuantizer, weight: Tensor, factor: Tensor | float) -> Row:
    """Returns the root of the mean square of what rounding changes now; nan as long as the range is not known."""
    error = float("nan")
    if quantizer.known:
        error = (quantizer.quantize(weight * factor) / factor - weight).square().mean().sqrt().item()
    return {"error": error, "#params": weight.numel()}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value else None
    return value if isinstance(value, bool | int | str) else str(value)


def _cell(value: Any) -> str:
    return f"{value:.5f}" if isinstance(value, float) else str(value)
