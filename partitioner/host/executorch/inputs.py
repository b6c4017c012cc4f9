"""Checks of the inputs of a `.pte` method against its declaration, before anything runs."""

from collections.abc import Sequence
from numbers import Real

import torch

from partitioner.host.errors import InputError
from partitioner.host.pte.reader import NULL, Method, TensorSpec

# executorch_flatbuffer.ScalarType, the types that a method can take or return.
DTYPES = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    11: torch.bool,
    15: torch.bfloat16,
    27: torch.uint16,
    28: torch.uint32,
    29: torch.uint64,
}
_SCALARS: dict[str, type] = {"Int": int, "Double": float, "Bool": bool}

Input = torch.Tensor | bool | int | float | None


def check_inputs(method: Method, given: Sequence[object]) -> list[Input]:
    """Checks the inputs of a method and copies them to the memory layout that it declares.

    Args:
        method: The method.
        given: One tensor a position; a number where the method takes a number.

    Returns:
        The inputs, copied only where their memory layout has to change.

    Raises:
        InputError: The count, a shape, a dtype or a device is wrong; every problem is listed.
    """
    signature = ", ".join(describe(spec) for spec in method.inputs)
    packed = next((value for value in given if isinstance(value, tuple | list)), None)
    if packed is not None:
        raise InputError(
            f"got a {type(packed).__name__} of {len(packed)} values as one input; pass each input by itself, "
            f"run(pte, *inputs), in this order: ({signature})"
        )
    if len(given) != len(method.inputs):
        raise InputError(
            f"method {method.name!r} takes {len(method.inputs)} inputs, got {len(given)}; "
            f"pass run(pte, *inputs) in this order: ({signature})"
        )
    problems = [
        f"input {index}: {problem}"
        for index, (spec, value) in enumerate(zip(method.inputs, given, strict=True))
        if (problem := _problem(spec, value))
    ]
    if problems:
        listed = "\n  ".join(problems)
        raise InputError(f"method {method.name!r} takes ({signature}):\n  {listed}")
    return [_prepared(spec, value) for spec, value in zip(method.inputs, given, strict=True)]


def describe(spec: TensorSpec) -> str:
    """Returns what a method takes at one position, in words: ``float32[1, 3, 224, 224]``."""
    if spec.kind == NULL:
        return "None"
    if spec.kind != "Tensor":
        return _SCALARS[spec.kind].__name__ if spec.kind in _SCALARS else spec.kind
    dtype = str(DTYPES.get(spec.scalar_type, f"scalar type {spec.scalar_type}")).removeprefix("torch.")
    return f"{dtype}[{', '.join(_sizes(spec))}]"


def _sizes(spec: TensorSpec) -> list[str]:
    bounds = ("<=" if spec.dynamic and axis not in spec.fixed else "" for axis in range(len(spec.shape)))
    return [f"{bound}{size}" for bound, size in zip(bounds, spec.shape, strict=True)]


def _problem(spec: TensorSpec, value: object) -> str | None:
    if spec.kind == NULL:
        return None if value is None else f"got a {type(value).__name__}, expected None, as in the export"
    if spec.kind != "Tensor":
        return _scalar_problem(spec, value)
    if not isinstance(value, torch.Tensor):
        return f"got a {type(value).__name__}, expected a tensor {describe(spec)}; wrap it with torch.as_tensor"
    dtype = DTYPES.get(spec.scalar_type)
    if value.dtype != dtype:
        return f"got dtype {value.dtype}, expected {dtype}; convert it with .to({dtype})"
    if not _shape_fits(spec, tuple(value.shape)):
        way = "larger bounds" if spec.dynamic else "this shape, or with sizes that vary"
        return (
            f"got shape {tuple(value.shape)}, expected ({', '.join(_sizes(spec))}); reshape it, or export the model "
            f"with {way}: dynamic_shapes with Dim('name', max=...)"
        )
    if value.device.type != "cpu" or value.layout != torch.strided:
        return f"got a {value.layout} tensor on {value.device}, expected a dense one on the CPU; pass .to_dense().cpu()"
    return None


def _scalar_problem(spec: TensorSpec, value: object) -> str | None:
    if spec.kind not in _SCALARS:
        return f"a {spec.kind} cannot be passed through run"
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return None
    if not isinstance(value, Real):
        return f"got a {type(value).__name__}, expected a {_SCALARS[spec.kind].__name__}"
    return None


def _shape_fits(spec: TensorSpec, shape: tuple[int, ...]) -> bool:
    if not spec.dynamic:
        return shape == spec.shape
    return len(shape) == len(spec.shape) and all(
        got == most if axis in spec.fixed else got <= most
        for axis, (got, most) in enumerate(zip(shape, spec.shape, strict=True))
    )


def _prepared(spec: TensorSpec, value: object) -> Input:
    if spec.kind == NULL:
        return None
    if spec.kind != "Tensor":
        number = value.item() if isinstance(value, torch.Tensor) else value
        scalar: Input = _SCALARS[spec.kind](number)
        return scalar
    assert isinstance(value, torch.Tensor)
    order = spec.dim_order
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return value.detach().resolve_conj().resolve_neg().permute(order).contiguous().permute(inverse)
