"""Checks of the tensors of a `.pte`: their shapes, and that the memory they claim exists."""

from collections.abc import Iterator
from math import prod

from partitioner.host.pte.flatbuffer import Table

# Bytes an element of each ``scalar_type`` takes (executorch_flatbuffer.ScalarType). These are the types that kernels
# compute with; they end the process on the others, the quantized, bit and 8-bit floating point types.
ELEMENT_BYTES = {0: 1, 1: 1, 2: 2, 3: 4, 4: 8, 5: 2, 6: 4, 7: 8, 11: 1, 15: 2, 27: 2, 28: 4, 29: 8}
_COMPLEX = {8: "complex32", 9: "complex64", 10: "complex128"}
_PACKED = {12: "qint8", 13: "quint8", 14: "qint32", 16: "quint4x2", 17: "quint2x4", 22: "bits16"}
_EIGHT_BITS = {23: "float8_e5m2", 24: "float8_e4m3fn", 25: "float8_e5m2fnuz", 26: "float8_e4m3fnuz"}
_FOREIGN = _COMPLEX | _PACKED | _EIGHT_BITS
_EXTERNAL = 1
_UNBOUND = 2
_MAX_RANK = 16
# How much of a planned buffer may be unused: alignment, and scratch memory of kernels.
_UNUSED_BYTES = 64 << 20
_MAX_PLANNED_BYTES = 1 << 40


def foreign_types(program: Table) -> list[str]:
    """Returns the types of tensors that programs may have and kernels do not compute with, one for each such tensor."""
    values = [value["val"] for plan in program["execution_plan"] for value in plan["values"]]
    types = [value["scalar_type"] for value in values if value is not None and value.kind == "Tensor"]
    return [_FOREIGN[number] for number in types if number in _FOREIGN]


def plan_size_problems(buffers: list[int], values: list[Table | None]) -> Iterator[str]:
    """Yields the buffers of a memory plan whose size is impossible.

    The runtime allocates and clears them all, so one wrong size can exhaust the machine.
    """
    ends = [0] * len(buffers)
    for value in values:
        allocation = value["allocation_info"] if value is not None and value.kind == "Tensor" else None
        if allocation is not None and allocation["memory_id"] < len(buffers):
            memory_id = allocation["memory_id"]
            ends[memory_id] = max(ends[memory_id], _allocated_end(allocation, _tensor_bytes(value)))
    for index, (size, end) in enumerate(zip(buffers, ends, strict=True)):
        if not 0 <= size <= 2 * end + _UNUSED_BYTES:
            yield f"planned buffer {index} has {size} bytes, of which tensors use {end}"


def homeless_problems(plan: Table, values: list[Table | None]) -> Iterator[str]:
    """Yields the tensors between instructions that have no memory."""
    given = {*plan["inputs"], *plan["outputs"]}
    for index, value in enumerate(values):
        if value is None or value.kind != "Tensor" or index in given or value["shape_dynamism"] == _UNBOUND:
            continue
        if value["allocation_info"] is None and not value["data_buffer_idx"] and value["extra_tensor_info"] is None:
            yield f"tensor {index} has neither a place in the memory plan nor data"


def tensor_problems(program: Table, plan: Table, tensor: Table) -> Iterator[str]:
    """Yields what is wrong with one tensor: its type, shape, layout, and the memory it claims."""
    sizes, order = tensor["sizes"], bytes(tensor["dim_order"])
    if tensor["scalar_type"] not in ELEMENT_BYTES:
        yield f"unusable scalar type {tensor['scalar_type']}"
        return
    if len(sizes) > _MAX_RANK or any(size < 0 for size in sizes):
        yield f"impossible shape {sizes[:_MAX_RANK]}"
        return
    if sorted(order) != list(range(len(sizes))):
        yield f"dimension order {list(order)} does not fit shape {sizes}"
    if tensor["shape_dynamism"] not in (0, 1, 2):
        yield f"unknown shape dynamism {tensor['shape_dynamism']}"
    nbytes = _tensor_bytes(tensor)
    if nbytes > _MAX_PLANNED_BYTES:
        yield f"impossible size of {nbytes} bytes"
    allocation, extra = tensor["allocation_info"], tensor["extra_tensor_info"]
    if allocation is not None:
        yield from _allocation_problems(plan["non_const_buffer_sizes"], allocation, nbytes)
    elif tensor["data_buffer_idx"] > 0 and (extra is None or extra["location"] != _EXTERNAL):
        yield from _constant_reference_problems(program, tensor["data_buffer_idx"], nbytes)


def _allocation_problems(buffers: list[int], allocation: Table, nbytes: int) -> Iterator[str]:
    memory_id = allocation["memory_id"]
    end = _allocated_end(allocation, nbytes)
    if not 1 <= memory_id < len(buffers):
        yield f"it lies in planned buffer {memory_id} of {len(buffers)}"
    elif end > buffers[memory_id]:
        yield f"it ends at byte {end} of planned buffer {memory_id}, which has {buffers[memory_id]}"


def _allocated_end(allocation: Table, nbytes: int) -> int:
    offset: int = allocation["memory_offset_low"] + (allocation["memory_offset_high"] << 32)
    return offset + nbytes


def _tensor_bytes(tensor: Table | None) -> int:
    return 0 if tensor is None else prod(tensor["sizes"]) * ELEMENT_BYTES.get(tensor["scalar_type"], 0)


def _constant_reference_problems(program: Table, index: int, nbytes: int) -> Iterator[str]:
    constants = program["constant_segment"]
    if constants is None or not constants["offsets"]:
        sizes = [len(buffer["storage"]) for buffer in program["constant_buffer"]]
    elif constants["segment_index"] < len(program["segments"]):
        end = program["segments"][constants["segment_index"]]["size"]
        sizes = [end - offset for offset in constants["offsets"]]
    else:
        return
    if index >= len(sizes):
        yield f"it is constant {index} of {len(sizes)}"
    elif nbytes > sizes[index]:
        yield f"it takes {nbytes} bytes, and constant {index} has {sizes[index]}"
