"""The policy into which every kind of configuration is read: it tells which spec an operator gets."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from coreml_quantizer.specs import OpSpec


@dataclass(frozen=True)
class Scopes:
    """Specs by module path, pattern, module type and operator; a spec of `None` means: leave in floating point.

    Attributes:
        by_name: Module path to spec; holds for the module and everything inside it; the innermost path wins.
        by_pattern: Regular expression, which must match a whole module path, to spec; holds for the module and
            everything inside it; the first match wins.
        by_type: Class name, full or bare, to spec; the innermost module of a named class wins.
        by_op: Name of an ATen operator, such as "aten.add", to spec; in-place forms have the same name.
    """

    by_name: Mapping[str, OpSpec | None] = field(default_factory=dict)
    by_pattern: Mapping[str, OpSpec | None] = field(default_factory=dict)
    by_type: Mapping[str, OpSpec | None] = field(default_factory=dict)
    by_op: Mapping[str, OpSpec | None] = field(default_factory=dict)


@dataclass(frozen=True)
class QuantizationPolicy:
    """A whole configuration, read and checked.

    Attributes:
        default: Spec of everything that no scope names; `None` leaves it in floating point.
        scopes: What overrides the default: name over pattern over type over operator.
        skip: What stays in floating point, even if the scopes give it a spec.
        first_layer: "as_configured", "weight_only" or "float", for layers with weights that have no other such layer
            before them.
        last_layer: The same, for layers with weights that have no other such layer after them.
        quantizes_inputs: Whether values that enter the model are quantized where they are read.
        quantizes_outputs: Whether values that leave the model are quantized.
        fixes_known_ranges: Whether outputs whose range is known, such as a sigmoid's, take coremltools' fixed
            parameters; otherwise they are observed.
        fields: The configuration's own names of its fields for module paths, patterns, types and operators, for
            messages.
    """

    default: OpSpec | None
    scopes: Scopes = field(default_factory=Scopes)
    skip: Scopes = field(default_factory=Scopes)
    first_layer: str = "as_configured"
    last_layer: str = "as_configured"
    quantizes_inputs: bool = True
    quantizes_outputs: bool = True
    fixes_known_ranges: bool = False
    fields: tuple[str, str, str, str] = ("modules", "patterns", "types", "ops")
