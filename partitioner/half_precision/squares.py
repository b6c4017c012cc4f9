"""Sums and means of squares in half precision, whose squares float16 cannot hold.

The square of 256 is infinite in float16, and the square of 1e-4 is zero. But what a program wants is mostly the root:
of a norm, a standard deviation, or an RMS norm that is written out. So the root is computed first, as Core ML's norm of
the values times a power of two, and squared where the program needs the square. This is as many operations on whole
tensors as before.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil.types.symbolic import is_symbolic

_ROOTS = {"sqrt": 0.5, "rsqrt": -0.5}
_SMALLEST_NORMAL = 2.0**-14


class _Total(NamedTuple):
    """A sum or mean of squares.

    Attributes:
        x: What is squared.
        reduction: The operation that adds up.
        axes: The dimensions that it adds up.
        keeps: Whether it keeps them.
        mean: Whether it divides by their number of elements.
    """

    x: Any
    reduction: Any
    axes: list[int]
    keeps: bool
    mean: bool


class _Root(NamedTuple):
    """A root of ``factor * total + summand``, or one over it.

    Attributes:
        operation: The operation that returns it.
        factor: What the total is multiplied by.
        computed: Scalars that it is multiplied by, too, and that are known only when the program runs.
        summand: What is added.
        inverse: Whether it is one over the root.
    """

    operation: Any
    factor: float
    computed: tuple[Any, ...]
    summand: float
    inverse: bool


def root_first(block: Any) -> None:
    """Rewrites, in place, the sums and means of squares of a MIL block that is going to be cast to float16."""
    for total in list(_totals(block)):
        value = total.reduction.outputs[0]
        roots = list(_roots(value, _Root(None, 1.0, (), 0.0, False)))
        norm = _norm(total)
        for root in roots:
            old = root.operation.outputs[0]
            new = _of_norm(norm, root)
            block.replace_uses_of_var_after_op(anchor_op=root.operation, old_var=old, new_var=new)
        square = mb.square(x=norm, before_op=total.reduction, name=value.name)
        block.replace_uses_of_var_after_op(anchor_op=total.reduction, old_var=value, new_var=square)


def _totals(block: Any) -> Iterator[_Total]:
    for operation in block.operations:
        if operation.op_type == "reduce_sum_square":
            squared, source = None, operation.x
        elif operation.op_type in ("reduce_sum", "reduce_mean"):
            squared = operation.x.op
            source = _squared(squared)
        else:
            continue
        if source is None or source.val is not None or not _is_float(source) or source.rank == 0:
            continue
        axes = range(source.rank) if operation.axes is None else operation.axes.val
        keeps = operation.keep_dims is not None and bool(operation.keep_dims.val)
        mean = operation.op_type == "reduce_mean"
        yield _Total(source, operation, [int(axis) % source.rank for axis in axes], keeps, mean)


def _squared(operation: Any) -> Any:
    """Returns what an operation squares, or None."""
    kind = None if operation is None else operation.op_type
    if kind == "square" or (kind == "mul" and operation.x is operation.y):
        return operation.x
    return operation.x if kind == "pow" and _number(operation.y) == 2 else None


def _is_float(value: Any) -> bool:
    return bool(value.is_tensor_or_scalar_of(dtype="fp32"))


def _number(value: Any) -> float | None:
    """Returns a constant of one element."""
    known = None if value is None else value.val
    return float(np.asarray(known).item()) if known is not None and np.size(known) == 1 else None


def _roots(value: Any, so_far: _Root) -> Iterator[_Root]:
    """Follows the readers of a total to its roots."""
    for reader in value.child_ops:
        kind = reader.op_type
        if kind in _ROOTS:
            epsilon = _number(reader.epsilon) or 0.0 if kind == "rsqrt" else 0.0
            yield so_far._replace(operation=reader, summand=so_far.summand + epsilon, inverse=kind == "rsqrt")
        elif kind == "pow" and reader.x is value and _number(reader.y) in _ROOTS.values():
            yield so_far._replace(operation=reader, inverse=_number(reader.y) == _ROOTS["rsqrt"])
        elif (behind := _changed(reader, value, so_far)) is not None:
            yield from _roots(reader.outputs[0], behind)


def _changed(reader: Any, value: Any, so_far: _Root) -> _Root | None:
    """Returns what becomes of a total where a reader adds a number to it, or multiplies or divides it by one."""
    kind = reader.op_type
    if kind not in ("add", "mul", "real_div") or (kind == "real_div" and reader.x is not value):
        return None
    other = reader.y if reader.x is value else reader.x
    number = _number(other)
    if number is None:
        is_factor = kind == "mul" and other.rank == 0 and so_far.summand == 0
        return so_far._replace(computed=(*so_far.computed, other)) if is_factor else None
    if not 0 < number < math.inf:
        return None
    if kind == "add":
        return None if so_far.computed else so_far._replace(summand=so_far.summand + number)
    scale = number if kind == "mul" else 1 / number
    return so_far._replace(factor=so_far.factor * scale, summand=so_far.summand * scale)


class _Writer:
    """A writer of operations in front of another one, under names that derive from its name.

    Names that MIL would choose may be those of the program's own values.
    """

    def __init__(self, place: Any) -> None:
        self._place = place
        self._written = 0

    def __call__(self, build: Any, name: str | None = None, **inputs: Any) -> Any:
        self._written += 1
        name = name or f"{self._place.name}_root_{self._written}"
        return build(**inputs, before_op=self._place, name=name)


def _norm(total: _Total) -> Any:
    """Returns the root of a total."""
    x, axes = total.x, total.axes
    sizes = [x.shape[axis] for axis in axes]
    if any(map(is_symbolic, sizes)):
        return _norm_of_any_size(total)
    write = _Writer(total.reduction)
    count = math.prod(int(size) for size in sizes)
    scale = 2.0 ** -round(math.log2(max(count, 1)) / 2)
    scaled = x if scale == 1 else write(mb.mul, x=x, y=np.float32(scale))
    norm = write(mb.reduce_l2_norm, x=scaled, axes=axes, keep_dims=total.keeps)
    factor = 1 / (scale * math.sqrt(count)) if total.mean else 1 / scale
    return norm if factor == 1 else write(mb.mul, x=norm, y=np.float32(factor))


def _norm_of_any_size(total: _Total) -> Any:
    """Returns the root of a total over elements of which the number varies, relative to the largest of them."""
    x, axes = total.x, total.axes
    write = _Writer(total.reduction)
    largest = write(mb.reduce_max, x=write(mb.abs, x=x), axes=axes, keep_dims=True)
    largest = write(mb.maximum, x=largest, y=np.float32(_SMALLEST_NORMAL))
    square = write(mb.square, x=write(mb.real_div, x=x, y=largest))
    reduce = mb.reduce_mean if total.mean else mb.reduce_sum
    root = write(mb.sqrt, x=write(reduce, x=square, axes=axes, keep_dims=total.keeps))
    return write(mb.mul, x=root, y=largest if total.keeps else write(mb.squeeze, x=largest, axes=axes))


def _of_norm(norm: Any, root: _Root) -> Any:
    """Returns the root of ``factor * norm ** 2 + summand``, or one over it."""
    write, name = _Writer(root.operation), root.operation.outputs[0].name
    if root.factor != 1:
        norm = write(mb.mul, x=norm, y=np.float32(math.sqrt(root.factor)))
    for factor in root.computed:
        norm = write(mb.mul, x=norm, y=write(mb.sqrt, x=factor))
    if root.summand == 0 and root.inverse:
        return write(mb.inverse, x=norm, epsilon=0.0, name=name)
    if root.summand == 0:
        return write(mb.identity, x=norm, name=name)
    least = np.float32(math.sqrt(root.summand))
    larger = write(mb.maximum, x=norm, y=least)
    first, second = (write(mb.square, x=write(mb.real_div, x=part, y=larger)) for part in (norm, least))
    total = write(mb.add, x=first, y=second)  # from 1 to 2
    if root.inverse:
        return write(mb.real_div, x=write(mb.rsqrt, x=total, epsilon=0.0), y=larger, name=name)
    return write(mb.mul, x=write(mb.sqrt, x=total), y=larger, name=name)
