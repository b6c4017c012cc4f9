"""Checks of a parsed `.pte` for what ExecuTorch's runtime trusts, and crashes on when it is wrong.

The runtime verifies the flatbuffer's layout. It asserts, rather than checks, most of what the numbers in it mean; an
index out of range ends the process. These checks run before the runtime sees a program and report every problem.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from partitioner.host.pte.flatbuffer import Table
from partitioner.host.pte.operators import argument_problems
from partitioner.host.pte.tensors import homeless_problems, plan_size_problems, tensor_problems

_INLINE, _SEGMENT = 0, 1


def program_problems(program: Table, segment_bytes: int) -> Iterator[str]:
    """Yields what is wrong with a program, one line a problem.

    Args:
        program: The root table.
        segment_bytes: Bytes in the file from the first segment on.
    """
    for index, segment in enumerate(program["segments"]):
        if segment["offset"] + segment["size"] > segment_bytes:
            yield f"segment {index} ends at byte {segment['offset'] + segment['size']} of {segment_bytes}"
    yield from _constant_problems(program)
    segments = len(program["segments"])
    for entry in program["named_data"]:
        yield from _index_problem(f"the segment of named data {entry['key']!r}", entry["segment_index"], segments)
    if not program["execution_plan"]:
        yield "it has no method"
    for plan in program["execution_plan"]:
        label = f"method {plan['name']!r}"
        yield from (f"{label}: {problem}" for problem in _plan_problems(program, plan))


def _constant_problems(program: Table) -> Iterator[str]:
    segments = program["segments"]
    subsegments = [("constant", program["constant_segment"])]
    subsegments += [("mutable data", table) for table in program["mutable_data_segments"]]
    for label, table in subsegments:
        if table is None or not table["offsets"]:
            continue
        index = table["segment_index"]
        if index >= len(segments):
            yield f"the {label} segment is number {index} of {len(segments)}"
        elif any(offset > segments[index]["size"] for offset in table["offsets"]):
            yield f"an offset of the {label} segment lies past its {segments[index]['size']} bytes"


def _plan_problems(program: Table, plan: Table) -> Iterator[str]:
    values = [value["val"] for value in plan["values"]]
    if not plan["chains"]:
        yield "it has no instructions"
    for role in ("inputs", "outputs"):
        yield from _indices_problem(role, plan[role], len(values))
    yield from plan_size_problems(plan["non_const_buffer_sizes"], values)
    yield from homeless_problems(plan, values)
    for entry in plan["non_const_buffer_device"]:
        yield from _index_problem("a planned buffer", entry["buffer_idx"], len(plan["non_const_buffer_sizes"]))
    yield from _labelled("value", (_value_problems(program, plan, values, value) for value in values))
    yield from _labelled("operator", (_operator_problems(operator) for operator in plan["operators"]))
    yield from _labelled("delegate", (_delegate_problems(program, delegate) for delegate in plan["delegates"]))
    for chain in plan["chains"]:
        count = len(chain["instructions"])
        calls = (entry["instr_args"] for entry in chain["instructions"])
        yield from _labelled("instruction", (_instruction_problems(plan, values, count, call) for call in calls))


def _labelled(label: str, found: Iterable[Iterable[str]]) -> Iterator[str]:
    for index, problems in enumerate(found):
        yield from (f"{label} {index}: {problem}" for problem in problems)


def _operator_problems(operator: Table) -> Iterator[str]:
    if not _is_plain(operator["name"]) or not _is_plain(operator["overload"] or "default"):
        yield "it has no readable name"


def _value_problems(program: Table, plan: Table, values: list[Table | None], value: Table | None) -> Iterator[str]:
    if value is None:
        return
    if value.kind == "Tensor":
        yield from tensor_problems(program, plan, value)
    elif value.kind == "IntList":
        # The items of an integer list are themselves value indices, so that they may be computed at run time.
        yield from _indices_problem("an integer list", value["items"], len(values))
        yield from _kinds_problem("an integer list", value["items"], values, {"Int"})
    elif value.kind == "TensorList":
        yield from _indices_problem("a tensor list", value["items"], len(values))
        yield from _kinds_problem("a tensor list", value["items"], values, {"Tensor"})
    elif value.kind == "OptionalTensorList":
        present = [index for index in value["items"] if index != -1]
        yield from _indices_problem("a tensor list", present, len(values))
        yield from _kinds_problem("a tensor list", present, values, {"Tensor", "Null", None})


def _delegate_problems(program: Table, delegate: Table) -> Iterator[str]:
    processed = delegate["processed"]
    if not _is_plain(delegate["id"]):
        yield "it has no readable backend name"
    if processed["location"] == _INLINE:
        yield from _index_problem("its inline data", processed["index"], len(program["backend_delegate_data"]))
    elif processed["location"] == _SEGMENT:
        yield from _index_problem("its segment", processed["index"], len(program["segments"]))
    else:
        yield f"its data is at unknown location {processed['location']}"


def _instruction_problems(plan: Table, values: list[Table | None], count: int, call: Table | None) -> Iterator[str]:
    if call is None:
        yield "it has no kind"
    elif call.kind in ("KernelCall", "DelegateCall"):
        target, table = ("op_index", "operators") if call.kind == "KernelCall" else ("delegate_index", "delegates")
        problems = list(_index_problem(f"its entry of {table}", call[target], len(plan[table])))
        problems += _indices_problem("arguments", call["args"], len(values))
        yield from problems
        if call.kind == "KernelCall" and not problems:
            yield from argument_problems(plan["operators"][call["op_index"]], [values[k] for k in call["args"]])
        elif not problems:
            yield from _kinds_problem("arguments", call["args"], values, {"Tensor"})
    elif call.kind == "JumpFalseCall":
        yield from _index_problem("its condition", call["cond_value_index"], len(values))
        yield from _index_problem("its destination", call["destination_instruction"], count + 1)
        yield from _kinds_problem("its condition", [call["cond_value_index"]], values, {"Bool", "Tensor"})
    else:
        fields: list[Any] = list(call.fields.values())
        yield from _indices_problem("operands", fields, len(values))


def _is_plain(name: str | None) -> bool:
    """Returns whether a name is there and can be logged: the runtime's log aborts on what is not text."""
    return bool(name) and str(name).isascii() and str(name).isprintable()


def _index_problem(label: str, index: int, count: int) -> Iterator[str]:
    if not 0 <= index < count:
        yield f"{label} is number {index} of {count}"


def _indices_problem(label: str, indices: list[int], count: int) -> Iterator[str]:
    outside = [index for index in indices if not 0 <= index < count]
    if outside:
        yield f"{label} refer to values {outside[:8]} of {count}"


def _kinds_problem(
    label: str, indices: list[int], values: list[Table | None], allowed: set[str | None]
) -> Iterator[str]:
    kinds = {_kind(values[index]) for index in indices if 0 <= index < len(values)} - allowed
    if kinds:
        names = ", ".join(sorted(str(kind) for kind in kinds))
        yield f"{label} may not be {names}"


def _kind(value: Table | None) -> str | None:
    return None if value is None else value.kind
