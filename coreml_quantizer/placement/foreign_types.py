"""A warning about models in floating-point types that Core ML does not have."""

import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch.fx import Node

from coreml_quantizer.errors import QuantizerWarning
from coreml_quantizer.graph.nodes import module_stack
from coreml_quantizer.rules import RuleTable, Treatment

_FOREIGN_TYPES: Mapping[torch.dtype, str] = MappingProxyType(
    {torch.float64: "are not quantized", torch.bfloat16: "will stay outside of it"}
)
"""Floating-point types that Core ML does not have, and what happens to operators that compute in them."""


def warn_of_foreign_types(nodes: Sequence[Node], rules: RuleTable) -> None:
    """Warns about operators that compute in a floating-point type that Core ML does not have.

    Without the warning, nobody would notice that they stay unquantized or never run in Core ML.
    """
    found: dict[torch.dtype, list[Node]] = {}
    for node in nodes:
        rule, value = rules.row(node), node.meta.get("val")
        if rule is not None and rule.treatment is Treatment.QUANTIZED and isinstance(value, torch.Tensor):
            found.setdefault(value.dtype, []).append(node)
    for dtype, consequence in _FOREIGN_TYPES.items():
        calls = found.get(dtype, [])
        modules = sorted({stack[-1][0] or "the model" for node in calls if (stack := module_stack(node))})
        if calls:
            name, more = str(dtype).removeprefix("torch."), ", ..." if len(modules) > 5 else ""
            warnings.warn(
                f"{len(calls)} operators compute in {name}, which Core ML does not have, and {consequence}: "
                f"{', '.join(modules[:5])}{more}. Call model.float() before torch.export.",
                QuantizerWarning,
                stacklevel=2,
            )
