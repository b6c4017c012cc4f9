"""A reader of `.pte` files that needs no ExecuTorch.

A `.pte` is a flatbuffer (identifier ET12), an optional extended header at byte 8, and data segments behind it. The
bytes are checked completely, layout and meaning, because the native runtime ends the process on some damaged programs.
"""

from dataclasses import dataclass
from typing import Any

from partitioner.host.errors import ProgramFormatError
from partitioner.host.pte.checks import program_problems
from partitioner.host.pte.fatal_calls import fatal_calls
from partitioner.host.pte.flatbuffer import Table, read_root
from partitioner.host.pte.tensors import foreign_types

COREML_BACKEND = "CoreMLBackend"
NULL = "Null"
"""Kind of an input or output that is None."""

_IDENTIFIER = b"ET12"
_HEADER_MAGIC = b"eh00"
_HEADER_BYTES = 40
_REMEDY = "write it again with `to_executorch().write_to_file(...)`, or copy it again if it was transferred"
_SHOWN_PROBLEMS = 8


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a method.

    Attributes:
        kind: ``"Tensor"``, or the kind of scalar: ``"Int"``, ``"Double"``, ``"Bool"``, ``"String"``, ..., or `NULL`.
        scalar_type: ExecuTorch's number of the element type; -1 for scalars.
        shape: Upper bound of every dimension; empty for scalars.
        dim_order: Dimensions from the slowest to the fastest varying in memory; empty for scalars.
        dynamic: Whether a smaller shape may be given.
        fixed: Dimensions of a dynamic input that are known to have this size only.
    """

    kind: str
    scalar_type: int = -1
    shape: tuple[int, ...] = ()
    dim_order: tuple[int, ...] = ()
    dynamic: bool = False
    fixed: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Delegate:
    """One delegate of a method.

    Attributes:
        backend: Name of the backend it was made for.
        data: What the backend reads, a view into the file.
        compile_specs: The compile specs stored with it.
    """

    backend: str
    data: memoryview
    compile_specs: dict[str, bytes]


@dataclass(frozen=True)
class DelegateWiring:
    """The connections of a method that is one delegate call and nothing else.

    Attributes:
        arguments: Value index of each delegate argument, inputs first, then outputs.
        inputs: Value index of each method input.
        outputs: Value index of each method output.
    """

    arguments: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Method:
    """One method of a program.

    Attributes:
        name: Its name.
        inputs: What it takes.
        outputs: What it returns.
        delegates: Its delegates.
        wiring: How it connects to its delegate if it is one delegate call and nothing else, else None.
        operators: The kernels it calls, as ExecuTorch names them.
        fatal: Kernel calls that would end the process, in words.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    delegates: tuple[Delegate, ...]
    wiring: DelegateWiring | None
    operators: tuple[str, ...]
    fatal: tuple[str, ...]


@dataclass(frozen=True)
class PteProgram:
    """A checked `.pte`: its methods by name and its named data."""

    methods: dict[str, Method]
    named_data: dict[str, memoryview]


def read_pte(data: bytes | bytearray | memoryview) -> PteProgram:
    """Reads and checks a `.pte`.

    Args:
        data: The whole file.

    Returns:
        Its methods and named data; blobs are views into ``data``.

    Raises:
        ProgramFormatError: ``data`` is empty, truncated, corrupt or not a `.pte`.
    """
    view = memoryview(data).cast("B")
    flatbuffer, segments = _split(view)
    try:
        program = read_root(flatbuffer, "Program")
    except ProgramFormatError as error:
        raise ProgramFormatError(f"the .pte is corrupt: {error}; {_REMEDY}") from None
    problems = list(program_problems(program, len(segments)))
    # Every problem is a tensor of such a type: one message about the types says it all.
    if problems and len(problems) == len(foreign := foreign_types(program)):
        raise ProgramFormatError(
            f"the .pte has tensors of {', '.join(sorted(set(foreign)))}, with which neither ExecuTorch's kernels nor "
            "Core ML compute; let the model compute with real numbers, for example with torch.view_as_real(x) for "
            "complex ones, and export it again"
        )
    if problems:
        more = f"\n  and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        listed = "\n  ".join(problems[:_SHOWN_PROBLEMS])
        raise ProgramFormatError(f"the .pte is corrupt; {_REMEDY}. Found:\n  {listed}{more}")
    return _build(program, segments)


def delegate_blobs(data: bytes | bytearray | memoryview) -> list[tuple[bytes, dict[str, bytes]]]:
    """Returns the Core ML delegate blobs of a `.pte`, in the order of methods and delegates.

    Args:
        data: The whole file.

    Returns:
        For each delegate of backend "CoreMLBackend" its blob and the program's named data.

    Raises:
        ProgramFormatError: ``data`` is empty, truncated, corrupt or not a `.pte`.
    """
    program = read_pte(data)
    named_data = {key: bytes(value) for key, value in program.named_data.items()}
    return [
        (bytes(delegate.data), named_data)
        for method in program.methods.values()
        for delegate in method.delegates
        if delegate.backend == COREML_BACKEND
    ]


def _split(view: memoryview) -> tuple[memoryview, memoryview]:
    """Returns the flatbuffer and the bytes that segment offsets are relative to."""
    if len(view) < 8:
        raise ProgramFormatError(f"not a .pte: it has only {len(view)} bytes; {_REMEDY}")
    if view[4:8] != _IDENTIFIER:
        found = bytes(view[4:8])
        raise ProgramFormatError(f"not a .pte: bytes 4 to 8 are {found!r}, not {_IDENTIFIER!r}; {_REMEDY}")
    if view[8:12] != _HEADER_MAGIC:
        return view, view[len(view) :]
    if len(view) < _HEADER_BYTES:
        raise ProgramFormatError(f"the .pte ends inside its header, after {len(view)} bytes; {_REMEDY}")
    header_bytes = int.from_bytes(view[12:16], "little")
    program_bytes = int.from_bytes(view[16:24], "little")
    segment_start = int.from_bytes(view[24:32], "little")
    segment_bytes = int.from_bytes(view[32:40], "little") if header_bytes >= 32 else 0
    if segment_start == 0:
        segment_start, segment_bytes = program_bytes, 0
    end = segment_start + segment_bytes
    if not _HEADER_BYTES <= program_bytes <= segment_start or header_bytes < 24:
        raise ProgramFormatError(f"the .pte has an inconsistent header; {_REMEDY}")
    if end > len(view):
        raise ProgramFormatError(f"the .pte is truncated: it has {len(view)} of {end} bytes; {_REMEDY}")
    return view[:program_bytes], view[segment_start:]


def _build(program: Table, segments: memoryview) -> PteProgram:
    parts = [segments[part["offset"] : part["offset"] + part["size"]] for part in program["segments"]]
    inline = [entry["data"] for entry in program["backend_delegate_data"]]
    methods = {plan["name"]: _build_method(plan, inline, parts) for plan in program["execution_plan"]}
    if len(methods) != len(program["execution_plan"]):
        raise ProgramFormatError(f"the .pte is corrupt: two methods have the same name; {_REMEDY}")
    named_data = {entry["key"]: parts[entry["segment_index"]] for entry in program["named_data"]}
    return PteProgram(methods, named_data)


def _build_method(plan: Table, inline: list[memoryview], parts: list[memoryview]) -> Method:
    values = [value["val"] for value in plan["values"]]
    specs = [_spec(value) for value in values]
    return Method(
        name=plan["name"],
        inputs=tuple(specs[index] for index in plan["inputs"]),
        outputs=tuple(specs[index] for index in plan["outputs"]),
        delegates=tuple(_build_delegate(entry, inline, parts) for entry in plan["delegates"]),
        wiring=_wiring(plan),
        operators=tuple(".".join(filter(None, (op["name"], op["overload"]))) for op in plan["operators"]),
        fatal=tuple(fatal_calls(plan, values)),
    )


def _build_delegate(entry: Table, inline: list[memoryview], parts: list[memoryview]) -> Delegate:
    processed = entry["processed"]
    source = inline if processed["location"] == 0 else parts
    specs = {spec["key"]: bytes(spec["value"]) for spec in entry["compile_specs"]}
    return Delegate(entry["id"], source[processed["index"]], specs)


def _spec(value: Table | None) -> TensorSpec:
    if value is None:
        return TensorSpec(NULL)
    if value.kind != "Tensor":
        return TensorSpec(value.kind)
    return TensorSpec(
        "Tensor", value["scalar_type"], tuple(value["sizes"]), tuple(value["dim_order"]), value["shape_dynamism"] != 0
    )


def _wiring(plan: Table) -> DelegateWiring | None:
    calls: list[Any] = [entry["instr_args"] for chain in plan["chains"] for entry in chain["instructions"]]
    if len(calls) != 1 or calls[0].kind != "DelegateCall":
        return None
    return DelegateWiring(tuple(calls[0]["args"]), tuple(plan["inputs"]), tuple(plan["outputs"]))
