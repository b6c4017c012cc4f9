"""The deployment target that a program needs, known before any expensive work.

Sources: Apple's "Guide to Core ML Tools", pages "Quantization Overview" and "Palettization Overview" (availability
tables), and the opsets of the MIL operations ``quantize``, ``constexpr_blockwise_shift_scale`` and ``read_state``.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import coremltools as ct
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from partitioner.errors import DeploymentTargetError, UnsupportedOpError
from partitioner.graph.nodes import argument, constant_values, op_name, place, skip_names, tensor_of
from partitioner.limits import INDEX_BITS, stored_bits


@dataclass(frozen=True)
class Requirement:
    """The need of one feature of a program.

    Attributes:
        target: The oldest deployment target that has the feature.
        feature: The feature in the user's words.
        origin: The operation or input that uses it.
        remedy: What else mends it, beside a newer target.
        entry: The entry of a quantizer's configuration that asks for it, when the quantizer left that in the program.
    """

    target: ct.target
    feature: str
    origin: str
    remedy: str | None = None
    entry: str | None = None


ENTRY_KEY = "quantization_entry"
"""Under this key of ``node.meta["custom"]`` a quantizer may name the entry of its configuration that an operation has.

`torch.export` and ExecuTorch carry that dictionary along. The operations that PT2E inserts have none; what is said of
the operation behind or in front of them counts.
"""

_Rule = Callable[[Node, frozenset[str]], tuple[ct.target, str] | None]
"""A function of an operation and the names of the constant values; it returns the target and the feature, or None."""

RANGE_ARGUMENTS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "quantized_decomposed.dequantize_per_tensor.default": (3, 4),
        "quantized_decomposed.dequantize_per_channel.default": (4, 5),
        "torchao.dequantize_affine.default": (5, 6),
    }
)
"""Positions of the lowest and the highest integer in the arguments of an operation."""

_SUB_BYTE_LEVELS = 15
_OLDEST = ct.target.iOS15


def _quantize(node: Node, constants: frozenset[str]) -> tuple[ct.target, str]:
    return ct.target.iOS17, "quantized activations"


def _dequantize(minimum: int, maximum: int) -> _Rule:
    """Returns the rule of an operator whose arguments at `minimum` and `maximum` are the integer range."""

    def rule(node: Node, constants: frozenset[str]) -> tuple[ct.target, str] | None:
        if isinstance(node.args[0], Node) and node.args[0].name not in constants:
            return ct.target.iOS17, "quantized activations"
        bounds = argument(node, minimum, "quant_min"), argument(node, maximum, "quant_max")
        if None not in bounds and bounds[1] - bounds[0] <= _SUB_BYTE_LEVELS:
            return ct.target.iOS18, "weights of 4 bits or fewer"
        return ct.target.iOS16, "quantized weights"

    return rule


def _dequantize_affine(node: Node, constants: frozenset[str]) -> tuple[ct.target, str] | None:
    found = _dequantize(*RANGE_ARGUMENTS["torchao.dequantize_affine.default"])(node, constants)
    data = tensor_of(node.args[0])
    blocks = argument(node, 1, "block_size")
    if data is None or blocks is None:
        return found
    split = [(size, block) for size, block in zip(data.shape, blocks, strict=False) if size != block]
    if len(split) > 1 or any(block != 1 for _, block in split):
        return ct.target.iOS18, "weights quantized per block"
    return found


def _dequantize_codebook(node: Node, constants: frozenset[str]) -> tuple[ct.target, str]:
    tables = tensor_of(node.args[1])
    if tables is None or tables.shape[:-2].numel() != 1:
        return ct.target.iOS18, "weights in several lookup tables"
    bits = stored_bits(tables.shape[-2])
    return INDEX_BITS[bits], f"weights in a lookup table of {2**bits} values"


RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        "quantized_decomposed.quantize_per_tensor.default": _quantize,
        "quantized_decomposed.quantize_per_channel.default": _quantize,
        "quantized_decomposed.dequantize_per_tensor.default": _dequantize(
            *RANGE_ARGUMENTS["quantized_decomposed.dequantize_per_tensor.default"]
        ),
        "quantized_decomposed.dequantize_per_channel.default": _dequantize(
            *RANGE_ARGUMENTS["quantized_decomposed.dequantize_per_channel.default"]
        ),
        "torchao.dequantize_affine.default": _dequantize_affine,
        "quant.dequantize_codebook.default": _dequantize_codebook,
        "aten.pixel_unshuffle.default": lambda node, constants: (ct.target.iOS16, "operations new in iOS16"),
    }
)

_NO_STATES = "To leave mutable buffers to ExecuTorch: CoreMLPartitioner(take_over_mutable_buffer=False)"

_DYNAMIC = ("choose_qparams", "_choose_qparams")
"""Prefixes of the operators that compute scales at run time."""


def find_requirements(
    program: ExportedProgram, skipped: Iterable[str] = (), states: Collection[str] = ()
) -> list[Requirement]:
    """Lists what a program asks of the device beyond the oldest Core ML that runs ML programs.

    Args:
        program: An ATen or edge program.
        skipped: Full lower-case names of operations that stay outside Core ML.
        states: Names of the mutable buffers that become Core ML states.
    """
    names = frozenset(skipped)
    constants = constant_values(program)
    found = [*_io_requirements(program, states)]
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        name = op_name(node)
        rule = RULES.get(name)
        result = rule(node, constants) if rule is not None and not (names and skip_names(node) & names) else None
        if result is not None:
            found.append(Requirement(*result, origin=name, entry=_entry(node)))
    return found


def _entry(node: Node) -> str | None:
    neighbours = (node, *node.users, *node.all_input_nodes)
    entries = ((neighbour.meta.get("custom") or {}).get(ENTRY_KEY) for neighbour in neighbours)
    return next((str(entry) for entry in entries if entry), None)


def _io_requirements(program: ExportedProgram, states: Collection[str]) -> Iterable[Requirement]:
    signature = program.graph_signature
    for buffer in states:
        yield Requirement(ct.target.iOS18, "mutable buffers as Core ML states", f"buffer {buffer!r}", _NO_STATES)
    user_inputs = {spec.arg.name for spec in signature.input_specs if spec.kind == InputKind.USER_INPUT}
    if not user_inputs:
        yield Requirement(ct.target.iOS18, "a model without inputs", "the program")
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in user_inputs:
            example = tensor_of(node)
            if example is not None and example.dtype == torch.float16:
                yield Requirement(ct.target.iOS16, "float16 inputs", f"input {node.name!r}")


def lowest_target(requirements: Iterable[Requirement]) -> ct.target | None:
    """Returns the lowest deployment target that meets all requirements; None when the oldest does."""
    return max((requirement.target for requirement in requirements), default=None)


def check_target(requirements: Iterable[Requirement], target: ct.target) -> None:
    """Refuses a deployment target that lacks what a program needs.

    Raises:
        DeploymentTargetError: Names every feature that is too new, who uses it, and the call that mends it.
    """
    if target < _OLDEST:
        raise DeploymentTargetError(
            f"the minimum deployment target {target.name} has no ML programs, which need {_OLDEST.name}. Use "
            f"CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.{_OLDEST.name}), or none"
        )
    missing = [requirement for requirement in requirements if requirement.target > target]
    if not missing:
        return
    counts = Counter((item.target, item.feature, item.origin) for item in missing)
    lines = [
        f"  {feature} need{'s' if feature.startswith('a ') else ''} {needed.name}: {origin} ({count}x)"
        + _asked_by(item.entry for item in missing if (item.feature, item.origin) == (feature, origin))
        for (needed, feature, origin), count in counts.items()
    ]
    needed = max(requirement.target for requirement in missing)
    remedies = "".join(f"\n{remedy}" for remedy in dict.fromkeys(item.remedy for item in missing) if remedy)
    raise DeploymentTargetError(
        f"the minimum deployment target {target.name} is too low for this program:\n"
        + "\n".join(lines)
        + "\nUse CoreMLPartitioner(compile_specs=CoreMLBackend.generate_compile_specs("
        f"minimum_deployment_target=ct.target.{needed.name})){remedies}"
    )


def _asked_by(entries: Iterable[str | None]) -> str:
    named = list(dict.fromkeys(entry for entry in entries if entry))
    return f", asked for by {', '.join(named)}" if named else ""


def describe(requirements: Iterable[Requirement]) -> tuple[str, ...]:
    """Returns one line for each feature and origin, with the entries that ask for it."""
    asked: dict[str, list[str | None]] = {}
    for item in requirements:
        asked.setdefault(f"{item.feature}: {item.origin}", []).append(item.entry)
    return tuple(f"{line}{_asked_by(entries)}" for line, entries in asked.items())


def refuse_dynamic_quantization(program: ExportedProgram) -> None:
    """Refuses scales that are computed at run time.

    Raises:
        UnsupportedOpError: Names every operation that computes them and its source line.
    """
    dynamic = [
        node
        for node in program.graph.nodes
        if node.op == "call_function" and op_name(node).split(".")[1:2] and _is_dynamic(op_name(node))
    ]
    if not dynamic:
        return
    places = [f"  {place(node)}" for node in dynamic]
    raise UnsupportedOpError(
        "Core ML has no dynamic quantization, and this program computes scales at run time:\n"
        + "\n".join(places)
        + "\nUse static quantization: calibrate with sample inputs, and do not set is_dynamic=True in the quantizer"
    )


def _is_dynamic(name: str) -> bool:
    return name.split(".")[1].startswith(_DYNAMIC)
