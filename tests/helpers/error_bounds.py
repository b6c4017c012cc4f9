"""Sound bounds on how far the values of a converted graph can be from those of another evaluation of it.

Every tensor carries a bound on its error, element by element, and each operator propagates it by an inequality:

- A quantizer with step s adds s/2: what it rounds was inside its range when it was calibrated, and clamping to a range
  brings no value further from one inside. Fixed ranges (sigmoid, tanh) end one step below 1, so those add s.
- A weight with step s per channel is off by s/2.
- A product is bilinear: |xw - x'w'| <= |x| e_w + e_x |w| + e_x e_w, with the operator itself on absolute values.
- Sums, averages, views and pools take the bounds as they take values; a maximum of values differs by at most the
  maximum of the bounds.
- An activation multiplies by its Lipschitz constant.
- Softmax: scores that are off by E change a probability by a factor of at most exp(2 E), and by 1 at most.

`Rounding` bounds instead what float32 rounding can do: it carries tiny errors, and where such an error reaches across a
rounding boundary of a quantizer, the whole step.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

aten = torch.ops.aten
QDQ = torch.ops.quantized_decomposed

FLOAT_ROUNDING = 2.0**-18
"""What float32 may lose, relative to a sum of absolute values: sums have up to 2**6 terms, each rounded by 2**-24."""

FIXED_SCALES = (1 / 256, 2 / 256)

LIPSCHITZ: dict[Any, float] = {
    aten.relu: 1.0, aten.relu6: 1.0, aten.hardtanh: 1.0, aten.leaky_relu: 1.0, aten.gelu: 1.13, aten.elu: 1.0,
    aten.silu: 1.1, aten.sigmoid: 0.25, aten.tanh: 1.0, aten.clamp: 1.0, aten.softplus: 1.0,
}  # fmt: skip
"""Largest slopes: 1.0998 for silu, 1.1289 for gelu."""

BILINEAR: dict[Any, tuple[Any, ...]] = {
    aten.conv2d: (0, 1), aten.conv_transpose2d: (0, 1), aten.linear: (0, 1), aten.matmul: (0, 1), aten.mul: (0, 1),
    aten.bmm: (0, 1), aten.einsum: ((1, 0), (1, 1)),
}  # fmt: skip
"""Products, and where their two factors stand. What else they read is a bias, which is exact."""

LINEAR = frozenset(
    {
        aten.permute, aten.transpose, aten.mT, aten.flatten, aten.view, aten.reshape, aten.chunk, aten.cat, aten.pad,
        aten.avg_pool2d, aten.upsample_nearest2d, aten.upsample_bilinear2d, aten.mean, aten.max_pool2d, aten.expand,
        aten.split, aten.contiguous, aten.alias,
    }
)  # fmt: skip
"""Operators that take bounds as they take values: linear with weights that are not negative, and maxima."""


@dataclass(frozen=True)
class Bounded:
    """A value of the converted graph and how far the other evaluation may be from it."""

    value: Tensor
    error: Tensor


class ErrorBounds(Interpreter):
    """Evaluates a converted graph with bounds on the distance to the graph that was calibrated."""

    def bounds(self, *inputs: Tensor) -> Bounded:
        with torch.no_grad():
            result = self.run(*(Bounded(x, torch.zeros_like(x)) for x in inputs))
        (found,) = result if isinstance(result, tuple | list) else (result,)
        assert isinstance(found, Bounded)
        return found

    def run_node(self, n: Node) -> Any:
        if n.op == "call_module":
            return None
        if n.op == "get_attr":
            value = operator.attrgetter(str(n.target))(self.module)
            return Bounded(value.detach(), torch.zeros(value.shape)) if isinstance(value, Tensor) else value
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return self._call(n.target, args, kwargs)

    def _call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        packet = getattr(target, "overloadpacket", target)
        if packet in (QDQ.quantize_per_tensor, QDQ.quantize_per_channel):
            return Bounded(target(args[0].value, *_values(args[1:])), self._quantized(target, args))
        if packet in (QDQ.dequantize_per_tensor, QDQ.dequantize_per_channel):
            return self._dequantized(target, args, kwargs)
        if packet in BILINEAR:
            return _product(target, BILINEAR[packet], args, kwargs)
        if packet in (aten.add, aten.sub, aten.rsub):
            value = target(*_values(args), **kwargs)
            return Bounded(value, sum(_errors(args), torch.zeros_like(value)) + FLOAT_ROUNDING * value.abs())
        if packet in LIPSCHITZ:
            value = target(*_values(args), **kwargs)
            return Bounded(value, LIPSCHITZ[packet] * args[0].error + FLOAT_ROUNDING * args[0].value.abs())
        if packet is aten.softmax:
            value = target(*_values(args), **kwargs)
            worst = args[0].error.amax(args[1], keepdim=True) + FLOAT_ROUNDING
            factor = torch.expm1(2 * worst)
            return Bounded(value, torch.where(factor.isfinite(), value * factor, 1.0).clamp(max=1.0))
        if packet in LINEAR:
            return _paired(target(*_values(args), **kwargs), target(*_only_errors(args), **kwargs))
        if target is operator.getitem:
            return args[0][args[1]]
        raise AssertionError(f"no bound is known for {target}")

    def _quantized(self, target: Any, args: tuple[Any, ...]) -> Tensor:
        scale = args[1]
        step = scale if scale in FIXED_SCALES else scale / 2
        return args[0].error + step + FLOAT_ROUNDING * args[0].value.abs()  # type: ignore[no-any-return]

    def _dequantized(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bounded:
        value = target(*_values(args), **kwargs)
        error = args[0].error
        if "per_channel" in str(target):
            shape = [-1 if axis == args[3] else 1 for axis in range(value.ndim)]
            error = error + self._weight_error(args[1].value).reshape(shape).expand_as(value)
        return Bounded(value, error)

    def _weight_error(self, scale: Tensor) -> Tensor:
        return scale.float() / 2


class Rounding(ErrorBounds):
    """Bounds on what float32 rounding can do to a converted graph."""

    def _quantized(self, target: Any, args: tuple[Any, ...]) -> Tensor:
        value, scale = args[0].value, args[1]
        error = args[0].error + FLOAT_ROUNDING * value.abs()
        middle, *ends = (target(x, *args[1:]).float() for x in (value, value - error, value + error))
        return torch.stack([(end - middle).abs() for end in ends]).amax(0) * scale

    def _weight_error(self, scale: Tensor) -> Tensor:
        return torch.zeros(scale.shape)


def error_bound(converted: GraphModule, *inputs: Tensor) -> Tensor:
    """Returns how far each output element of a converted graph may be from the graph that was calibrated."""
    return ErrorBounds(converted).bounds(*inputs).error


def rounding_bound(converted: GraphModule, *inputs: Tensor) -> Tensor:
    """Returns how far each output element may be from another float32 evaluation of the same graph."""
    return Rounding(converted).bounds(*inputs).error


def _product(target: Any, factors: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bounded:
    def computed(first: Callable[[Bounded], Tensor], second: Callable[[Bounded], Tensor]) -> Tensor:
        takes = dict(zip(factors, (first, second), strict=True))

        def argument(position: Any, given: Any) -> Any:
            if isinstance(given, list | tuple) and not all(isinstance(found, int) for found in given):
                return [argument((position, index), found) for index, found in enumerate(given)]
            if position in takes:
                return takes[position](given) if isinstance(given, Bounded) else abs(given)
            return given.value * 0.0 if isinstance(given, Bounded) else given

        result: Tensor = target(*(argument(i, a) for i, a in enumerate(args)), **kwargs)
        return result

    value = target(*_values(args), **kwargs)
    if not all(isinstance(given, Bounded | list | tuple) for given in args[:2]) and target is aten.mul.Tensor:
        return Bounded(value, args[0].error * abs(args[1]) + FLOAT_ROUNDING * value.abs())
    # The rounding of a sum grows with its terms, not with what is left of them.
    rounding = FLOAT_ROUNDING * (computed(_size, _size) + value.abs())
    return Bounded(value, computed(_error, _size) + computed(_size, _error) + computed(_error, _error) + rounding)


def _size(x: Bounded) -> Tensor:
    return x.value.abs()


def _error(x: Bounded) -> Tensor:
    return x.error


def _values(given: Any) -> Any:
    return torch.utils._pytree.tree_map(lambda x: x.value if isinstance(x, Bounded) else x, given)


def _only_errors(given: Any) -> Any:
    return torch.utils._pytree.tree_map(lambda x: x.error if isinstance(x, Bounded) else x, given)


def _errors(given: tuple[Any, ...]) -> list[Tensor]:
    return [x.error for x in given if isinstance(x, Bounded)]


def _paired(values: Any, errors: Any) -> Any:
    if isinstance(values, tuple | list):
        return [_paired(value, error) for value, error in zip(values, errors, strict=True)]
    return Bounded(values, errors)
