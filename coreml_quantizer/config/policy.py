"""Which spec an operator gets: module name over module type over operator over global."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from coreml_quantizer.specs import OpSpec


@dataclass(frozen=True)
class QuantizationPolicy:
    """A whole configuration, read and checked. In every mapping `None` means: leave in floating point.

    Attributes:
        default: Spec of everything that nothing below names.
        by_name: Module path to spec; holds for the module and all inside it, the innermost path wins.
        by_type: Fully qualified class name to spec; the innermost module of such a class wins.
        by_op: Name of an ATen operator, such as "aten.add", to spec; in-place forms go by the same name.
    """

    default: OpSpec | None
    by_name: Mapping[str, OpSpec | None] = field(default_factory=dict)
    by_type: Mapping[str, OpSpec | None] = field(default_factory=dict)
    by_op: Mapping[str, OpSpec | None] = field(default_factory=dict)
