"""The flatbuffer schema of a `.pte` (file identifier ET12), as far as reading and checking one needs it.

Field numbers are positions; a union takes two of them (its type, then its value). Scalars are `struct` format
characters. A field is required where the runtime follows it without looking; writers always write those. Source:
``exir/_serialize/program.fbs`` of ExecuTorch 1.5.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scalar:
    """A number; `code` is a `struct` format character, `default` what an absent field means."""

    code: str
    default: int | float = 0


@dataclass(frozen=True)
class Text:
    """A UTF-8 string; absent means None."""

    required: bool = False


@dataclass(frozen=True)
class Bytes:
    """A vector of bytes, kept as a view; absent means empty."""

    required: bool = False


@dataclass(frozen=True)
class Ref:
    """Another table; absent means None."""

    table: str
    required: bool = False


@dataclass(frozen=True)
class Vector:
    """A vector of scalars or of tables; absent means empty."""

    item: Scalar | Ref
    required: bool = False


@dataclass(frozen=True)
class Union:
    """One of several tables; `members[k - 1]` has the stored type k, and 0 means None."""

    members: tuple[str, ...]


Field = Scalar | Text | Bytes | Ref | Vector | Union

_BYTE, _BOOL, _INT, _UINT = Scalar("b"), Scalar("?"), Scalar("i"), Scalar("I")
_LONG, _ULONG, _DOUBLE, _TEXT, _NAME = Scalar("q"), Scalar("Q"), Scalar("d"), Text(), Text(required=True)


def _many(item: Scalar | str) -> Vector:
    return Vector(Ref(item) if isinstance(item, str) else item, required=True)


KERNEL_TYPES = Union(
    (
        "Null",
        "Int",
        "Bool",
        "Double",
        "Tensor",
        "String",
        "IntList",
        "DoubleList",
        "BoolList",
        "TensorList",
        "OptionalTensorList",
    )
)
INSTRUCTIONS = Union(("KernelCall", "DelegateCall", "MoveCall", "JumpFalseCall", "FreeCall"))

TABLES: dict[str, tuple[tuple[str, Field], ...]] = {
    "Null": (),
    "Int": (("int_val", _LONG),),
    "Bool": (("bool_val", _BOOL),),
    "Double": (("double_val", _DOUBLE),),
    "String": (("string_val", _NAME),),
    "IntList": (("items", _many(_LONG)),),
    "DoubleList": (("items", _many(_DOUBLE)),),
    "BoolList": (("items", _many(_BOOL)),),
    "TensorList": (("items", _many(_INT)),),
    "OptionalTensorList": (("items", _many(_INT)),),
    "AllocationDetails": (("memory_id", _UINT), ("memory_offset_low", _UINT), ("memory_offset_high", _UINT)),
    "ExtraTensorInfo": (
        ("mutable_data_segments_idx", _ULONG),
        ("fully_qualified_name", _TEXT),
        ("location", _BYTE),
        ("device_type", _BYTE),
        ("device_index", _BYTE),
    ),
    "Tensor": (
        ("scalar_type", _BYTE),
        ("storage_offset", _INT),
        ("sizes", _many(_INT)),
        ("dim_order", Bytes(required=True)),
        ("requires_grad", _BOOL),
        ("data_buffer_idx", _UINT),
        ("allocation_info", Ref("AllocationDetails")),
        ("layout", _BYTE),
        ("shape_dynamism", _BYTE),
        ("extra_tensor_info", Ref("ExtraTensorInfo")),
    ),
    "EValue": (("val", KERNEL_TYPES),),
    "Operator": (("name", _NAME), ("overload", _NAME)),
    "KernelCall": (("op_index", _INT), ("args", _many(_INT))),
    "DelegateCall": (("delegate_index", _INT), ("args", _many(_INT))),
    "MoveCall": (("move_from", _INT), ("move_to", _INT)),
    "JumpFalseCall": (("cond_value_index", _INT), ("destination_instruction", _INT)),
    "FreeCall": (("value_index", _INT),),
    "Instruction": (("instr_args", INSTRUCTIONS),),
    "Chain": (("inputs", Vector(_INT)), ("outputs", Vector(_INT)), ("instructions", _many("Instruction"))),
    "BackendDelegateDataReference": (("location", _BYTE), ("index", _UINT)),
    "CompileSpec": (("key", _NAME), ("value", Bytes(required=True))),
    "BackendDelegate": (
        ("id", _NAME),
        ("processed", Ref("BackendDelegateDataReference", required=True)),
        ("compile_specs", _many("CompileSpec")),
    ),
    "ContainerMetadata": (("encoded_inp_str", _NAME), ("encoded_out_str", _NAME)),
    "NonConstBufferDevice": (("buffer_idx", _INT), ("device_type", _BYTE), ("device_index", _BYTE)),
    "ExecutionPlan": (
        ("name", _NAME),
        ("container_meta_type", Ref("ContainerMetadata", required=True)),
        ("values", _many("EValue")),
        ("inputs", _many(_INT)),
        ("outputs", _many(_INT)),
        ("chains", _many("Chain")),
        ("operators", _many("Operator")),
        ("delegates", _many("BackendDelegate")),
        ("non_const_buffer_sizes", _many(_LONG)),
        ("non_const_buffer_device", Vector(Ref("NonConstBufferDevice"))),
    ),
    "Buffer": (("storage", Bytes()),),
    "BackendDelegateInlineData": (("data", Bytes()),),
    "DataSegment": (("offset", _ULONG), ("size", _ULONG)),
    "SubsegmentOffsets": (("segment_index", _UINT), ("offsets", Vector(_ULONG))),
    "NamedData": (("key", _NAME), ("segment_index", _UINT)),
    "Program": (
        ("version", _UINT),
        ("execution_plan", _many("ExecutionPlan")),
        ("constant_buffer", Vector(Ref("Buffer"))),
        ("backend_delegate_data", Vector(Ref("BackendDelegateInlineData"))),
        ("segments", Vector(Ref("DataSegment"))),
        ("constant_segment", Ref("SubsegmentOffsets")),
        ("mutable_data_segments", Vector(Ref("SubsegmentOffsets"))),
        ("named_data", Vector(Ref("NamedData"))),
    ),
}
