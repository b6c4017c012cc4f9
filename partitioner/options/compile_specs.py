"""Compile specs: the key/value options that travel from a partitioner to a backend.

Keys and byte values are those of ExecuTorch's Core ML backend, so specs made by either are read by both. One table
(`_FIELDS`) states how each option is written and read; `parse` reads a list of specs once into `LoweringOptions`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import coremltools as ct
import coremltools.optimize as cto
from executorch.exir.backend.compile_spec_schema import CompileSpec

from partitioner.errors import CompileSpecError
from partitioner.graph.size_ranges import SizeRange
from partitioner.stock import MULTIMETHOD_WEIGHT_SHARING_STRATEGY, EnumeratedShapes, StockBackend

MARK_KEY = "lowered_by"
"""The key that tells our backend that our partitioner chose the partition. The device ignores unknown keys."""

MARK = CompileSpec(MARK_KEY, b"coreml-quantizer")
_FULL_GRAPH_MARK = CompileSpec(MARK_KEY, b"coreml-quantizer: full graph")

ModelType: TypeAlias = StockBackend.MODEL_TYPE
WeightSharing: TypeAlias = MULTIMETHOD_WEIGHT_SHARING_STRATEGY


@dataclass(frozen=True)
class LoweringOptions:
    """The options that compile specs can state, read once.

    Attributes:
        compute_unit: Where the device may run the model; read by the device, not by the conversion.
        minimum_deployment_target: The oldest system that must run the model. None: the oldest system that can run it.
        compute_precision: Whether floating-point values are computed in half or single precision.
        model_type: An mlpackage, or a model compiled on this machine (macOS only).
        op_linear_quantizer_config: When given, Core ML Tools quantizes weights after conversion.
        pass_pipeline: The MIL passes to run.
        weight_sharing: How the methods of a program share their weights.
        enumerated_shapes: Symbolic input shape -> the shapes that it may take.
        lower_full_graph: Whether Core ML must take the whole program.
        size_ranges: What the partitioner knows of dynamic sizes; see `partitioner.graph.size_ranges`.
        on_trial: Whether operations that fail to convert will stay outside Core ML.
    """

    compute_unit: ct.ComputeUnit = ct.ComputeUnit.ALL
    minimum_deployment_target: ct.target | None = None
    compute_precision: ct.precision = ct.precision.FLOAT16
    model_type: ModelType = ModelType.MODEL
    op_linear_quantizer_config: cto.coreml.OpLinearQuantizerConfig | None = None
    pass_pipeline: ct.PassPipeline | None = None
    weight_sharing: WeightSharing = WeightSharing.POSITIONAL
    enumerated_shapes: EnumeratedShapes | None = None
    lower_full_graph: bool = False
    size_ranges: tuple[SizeRange, ...] = ()
    on_trial: bool = False


class NotedSpecs(list[CompileSpec]):
    """A list of compile specs that carries notes from the backend back to the partitioner that made it.

    ExecuTorch gives the backend the same list object that the partitioner gave ExecuTorch. There is no other way back.

    Attributes:
        notes: Lines for the report, filled by the backend.
    """

    def __init__(self, specs: Sequence[CompileSpec], notes: list[str]) -> None:
        super().__init__(specs)
        self.notes = notes


@dataclass(frozen=True)
class _Field:
    """The form in which an option is stored: key, Python types, functions from value to text and back, help texts."""

    key: str
    kinds: tuple[type, ...]
    write: Callable[[Any], str]
    read: Callable[[str], Any]
    values: str
    stored: str


def _read_target(text: str) -> ct.target | None:
    return ct.target(int(text)) if text else None


def _read_quantizer_config(text: str) -> cto.coreml.OpLinearQuantizerConfig:
    return cto.coreml.OpLinearQuantizerConfig._from_dict(json.loads(text))


def _read_pass_names(text: str) -> ct.PassPipeline:
    return ct.PassPipeline(json.loads(text), pipeline_name="executorch_user_pipeline")


def _members(enum: Any) -> str:
    return ", ".join(str(member.value) for member in enum)


def _spelled(prefix: str, enum: Any) -> str:
    return ", ".join(f"{prefix}.{member.name}" for member in enum)


_FIELDS: dict[str, _Field] = {
    "compute_unit": _Field(
        "compute_units",
        (ct.ComputeUnit,),
        lambda unit: unit.name.lower(),
        lambda text: ct.ComputeUnit[text.upper()],
        _spelled("ct.ComputeUnit", ct.ComputeUnit),
        ", ".join(unit.name.lower() for unit in ct.ComputeUnit),
    ),
    "minimum_deployment_target": _Field(
        "min_deployment_target",
        (ct.target, type(None)),
        lambda target: "" if target is None else str(target.value),
        _read_target,
        "None, " + _spelled("ct.target", ct.target),
        f"empty, or the number of a coremltools.target: {_members(ct.target)}",
    ),
    "compute_precision": _Field(
        "model_compute_precision",
        (ct.precision,),
        lambda precision: precision.value,
        ct.precision,
        _spelled("ct.precision", ct.precision),
        _members(ct.precision),
    ),
    "model_type": _Field(
        "model_type",
        (ModelType,),
        lambda kind: kind.value,
        ModelType,
        _spelled("CoreMLBackend.MODEL_TYPE", ModelType),
        _members(ModelType),
    ),
    "op_linear_quantizer_config": _Field(
        "op_linear_quantizer_config",
        (dict,),
        json.dumps,
        _read_quantizer_config,
        "a dict of the arguments of coremltools.optimize.coreml.OpLinearQuantizerConfig",
        "JSON of the arguments of coremltools.optimize.coreml.OpLinearQuantizerConfig",
    ),
    "pass_pipeline": _Field(
        "pass_pipeline",
        (list, tuple),
        json.dumps,
        _read_pass_names,
        "a list of MIL pass names",
        "a JSON list of MIL pass names",
    ),
    "weight_sharing": _Field(
        "multimethod_weight_sharing_strategy",
        (WeightSharing,),
        lambda strategy: strategy.value,
        WeightSharing,
        _spelled("MULTIMETHOD_WEIGHT_SHARING_STRATEGY", WeightSharing),
        _members(WeightSharing),
    ),
    "enumerated_shapes": _Field(
        "enumerated_shapes",
        (EnumeratedShapes,),
        lambda shapes: shapes.to_json(),
        EnumeratedShapes.from_json,
        "the argument of CoreMLBackend.generate_enumerated_shapes_compile_spec",
        "what CoreMLBackend.generate_enumerated_shapes_compile_spec writes",
    ),
    "size_ranges": _Field(
        "size_ranges",
        (tuple,),
        json.dumps,
        lambda text: tuple(map(tuple, json.loads(text))),
        "a tuple of (symbol, lower bound, upper bound)",
        "a JSON list of lists of a symbol and its bounds",
    ),
}
_NAMES_BY_KEY = {field.key: name for name, field in _FIELDS.items()}


def write_option(name: str, value: Any) -> CompileSpec:
    """Writes one option of `LoweringOptions` as a compile spec.

    Raises:
        CompileSpecError: The value is not one that the option can hold.
    """
    field = _FIELDS[name]
    refused = CompileSpecError(f"{name}={value!r} cannot be stored; allowed: {field.values}")
    if not isinstance(value, field.kinds):
        raise refused
    try:
        text = field.write(value)
    except (TypeError, ValueError) as error:
        raise refused from error
    return CompileSpec(field.key, text.encode())


def read_option(name: str, compile_specs: Sequence[CompileSpec]) -> Any:
    """Reads one option from the first compile spec that states it, or returns its default.

    Raises:
        CompileSpecError: The stored value cannot be read.
    """
    key = _FIELDS[name].key
    for spec in compile_specs:
        if spec.key == key:
            return _read_value(name, spec)
    return _DEFAULTS[name]


def states(name: str, compile_specs: Sequence[CompileSpec]) -> bool:
    """Returns whether some compile spec states the option. If none does, the option has its default."""
    return any(spec.key == _FIELDS[name].key for spec in compile_specs)


def parse(compile_specs: Sequence[CompileSpec]) -> LoweringOptions:
    """Reads a list of compile specs; the first spec of a key counts.

    Raises:
        CompileSpecError: Some keys are unknown or some values are unreadable. The message names all of them.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for spec in compile_specs:
        if spec.key == MARK_KEY:
            values["lower_full_graph"] = spec == _FULL_GRAPH_MARK
            continue
        name = _NAMES_BY_KEY.get(spec.key)
        if name is None:
            problems.append(f"unknown key {spec.key!r}; known keys: {', '.join(sorted(_NAMES_BY_KEY))}")
        elif name not in values:
            try:
                values[name] = _read_value(name, spec)
            except CompileSpecError as error:
                problems.append(str(error))
    if problems:
        raise CompileSpecError(
            "unreadable compile specs (make them with CoreMLBackend.generate_compile_specs):\n  "
            + "\n  ".join(problems)
        )
    return LoweringOptions(**values)


def with_mark(
    compile_specs: Sequence[CompileSpec], target: ct.target | None, *, full_graph: bool = False
) -> list[CompileSpec]:
    """Returns the specs for our backend: `target` instead of the given one, and the mark of our partitioner."""
    key = _FIELDS["minimum_deployment_target"].key
    specs = [spec for spec in compile_specs if spec.key not in (key, MARK_KEY)]
    return [*specs, write_option("minimum_deployment_target", target), _FULL_GRAPH_MARK if full_graph else MARK]


def is_marked(compile_specs: Sequence[CompileSpec]) -> bool:
    """Returns whether our partitioner made these specs."""
    return any(spec.key == MARK_KEY for spec in compile_specs)


def note(compile_specs: Sequence[CompileSpec], lines: Sequence[str]) -> None:
    """Adds lines on a conversion to the notes of compile specs.

    Specs that our partitioner did not make have no notes, and stay as they are.
    """
    if isinstance(compile_specs, NotedSpecs):
        compile_specs.notes.extend(line for line in lines if line not in compile_specs.notes)


def enumerate_shapes(ep: Any, enumerated_shapes: Mapping[str, Sequence[Sequence[int]]]) -> CompileSpec:
    """Writes the shapes that each dynamic input may take; see `CoreMLBackend.generate_enumerated_shapes_compile_spec`.

    Raises:
        CompileSpecError: The shapes do not fit the program's inputs.
    """
    try:
        shapes = EnumeratedShapes.from_exported_program(ep, enumerated_shapes)
    except (AssertionError, KeyError) as error:
        raise CompileSpecError(f"enumerated_shapes={dict(enumerated_shapes)!r} does not fit: {error}") from error
    return write_option("enumerated_shapes", shapes)


def _read_value(name: str, spec: CompileSpec) -> Any:
    field = _FIELDS[name]
    try:
        return field.read(spec.value.decode())
    except Exception as error:  # readers of other packages raise what they like
        raise CompileSpecError(
            f"compile spec {spec.key!r} has the unreadable value {spec.value!r} ({error}); allowed: {field.stored}"
        ) from error


_DEFAULTS = {field.name: field.default for field in fields(LoweringOptions)}
