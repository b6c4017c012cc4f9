"""Writes docs/rules.md from the rule table; a test fails when the two differ.

python docs/make_rules.py
"""

from pathlib import Path

import torch

from coreml_quantizer import OpRule, Treatment, rules
from coreml_quantizer.specs import FixedSpec

TARGET = Path(__file__).with_name("rules.md")
HEAD = """# What happens to each operator

Made from the rule table by `python docs/make_rules.py`. In-place forms have the rule of their operator. An operator
without a row stays in floating point and ends a chain of shared qparams.

| operator | treatment | weight axis | output range | why | source |
|---|---|---|---|---|---|
"""


def render() -> str:
    """Returns the whole page."""
    order = list(Treatment)
    rows = sorted(rules, key=lambda rule: (order.index(rule.treatment), _name(rule)))
    return HEAD + "".join(_row(rule) for rule in rows if not _name(rule).endswith("_"))


def _row(rule: OpRule) -> str:
    axis = "" if rule.weight is None else str(rule.weight.channel_axis)
    if rule.weights_of is not None:
        axis = "depends on its arguments"
    cells = (f"`{_name(rule)}`", _treatment(rule), axis, _range(rule), _why(rule), rule.source)
    return "| " + " | ".join(cells) + " |\n"


def _treatment(rule: OpRule) -> str:
    return "weights quantized" if rule.weights_only else rule.treatment.value


def _why(rule: OpRule) -> str:
    return f"{rule.reason}; float where {rule.otherwise}" if rule.otherwise else rule.reason


def _name(rule: OpRule) -> str:
    return str(rule.op) if isinstance(rule.op, torch._ops.OpOverloadPacket) else f"operator.{rule.op.__name__}"


def _range(rule: OpRule) -> str:
    known = rule.output_range
    if isinstance(known, FixedSpec):
        interval = "[0, 1]" if known.non_negative else "[-1, 1]"
        return f"{interval}; where fixed, scale 1/{round(1 / known.scale)}, zero point {known.zero_point}"
    return "depends on its arguments" if callable(known) else known.value


if __name__ == "__main__":
    TARGET.write_text(render())
