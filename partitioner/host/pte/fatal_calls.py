"""Kernel calls that end ExecuTorch's process instead of failing, because of the element types of their arguments."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from partitioner.host.pte.flatbuffer import Table

_RESULT = -1
_FLOATS = frozenset({5, 6, 7})
_DOUBLE = frozenset({7})
_NAMES = MappingProxyType({5: "float16", 6: "float32", 7: "float64", 15: "bfloat16"})

_NEEDED: Mapping[str, Mapping[int, frozenset[int]]] = MappingProxyType(
    {
        "quantized_decomposed::quantize_per_tensor": {0: _FLOATS},
        "quantized_decomposed::quantize_per_channel": {0: _FLOATS, 1: _DOUBLE},
        "quantized_decomposed::quantize_per_token": {0: _FLOATS},
        "quantized_decomposed::dequantize_per_tensor": {_RESULT: _FLOATS},
        "quantized_decomposed::dequantize_per_channel": {_RESULT: _FLOATS},
        "quantized_decomposed::dequantize_per_token": {_RESULT: _FLOATS},
    }
)
"""Operator -> position of an argument -> the scalar types that its kernel takes there (ExecuTorch 1.5,
kernels/quantized/cpu)."""


def fatal_calls(plan: Table, values: list[Table | None]) -> Iterator[str]:
    """Yields the kernel calls of a checked method that would end the process, in words."""
    calls: list[Any] = [entry["instr_args"] for chain in plan["chains"] for entry in chain["instructions"]]
    for call in calls:
        if call.kind != "KernelCall":
            continue
        name = plan["operators"][call["op_index"]]["name"]
        for position, allowed in _NEEDED.get(name, {}).items():
            tensor = values[call["args"][position]]
            if tensor is not None and tensor.kind == "Tensor" and tensor["scalar_type"] not in allowed:
                which = "a result" if position == _RESULT else f"argument {position}"
                found = _NAMES.get(tensor["scalar_type"], f"scalar type {tensor['scalar_type']}")
                wanted = " or ".join(_NAMES[number] for number in sorted(allowed))
                yield f"{name} has {which} of {found} and may have {wanted}"
