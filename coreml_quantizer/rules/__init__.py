"""Operator rules, one file for each family of operators; a new operator is a new row in one of the files.

`rules` is the table that quantizers use. Third parties add to it with `rules.register(OpRule(...))`.
"""

from coreml_quantizer.rules import activations, elementwise, norms, pooling, products, resampling, views, weights_only
from coreml_quantizer.rules.registry import (
    Movement,
    OpRule,
    OutputRange,
    RuleTable,
    Treatment,
    WeightRole,
)

__all__ = ["Movement", "OpRule", "OutputRange", "RuleTable", "Treatment", "WeightRole", "rules"]

rules = RuleTable()
for _family in (products, weights_only, elementwise, activations, norms, pooling, resampling, views):
    rules.register(*_family.RULES)
