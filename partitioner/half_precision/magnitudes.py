"""Estimates of how large the values of a MIL program are, from its constants and calibrated ranges only.

Every value has a nominal magnitude. It is 1 for inputs and for the results of norms and bounded functions. Scalar
factors multiply it, and of several summands the largest counts. A calibrated range gives the largest number that it
holds. Weights count only if they are larger than `LARGE_WEIGHT`: how large a sum over ordinary weights gets depends on
the data, which are not known here.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Var

LARGE_WEIGHT = 1e3

Magnitudes = dict[Any, float]
_Rule = Callable[[Any, Callable[[Any], float]], float]
"""Returns a magnitude for an operation. The second argument is a function that returns the magnitude of a value."""


def _bounded(operation: Any, of: Callable[[Any], float]) -> float:
    return 1.0


def _power(exponent: float) -> _Rule:
    return lambda operation, of: of(operation.x) ** exponent


def _pow(operation: Any, of: Callable[[Any], float]) -> float:
    exponent = operation.y.val
    return of(operation.x) ** float(np.max(exponent)) if exponent is not None else 1.0


def _product(operation: Any, of: Callable[[Any], float]) -> float:
    return of(operation.x) * of(operation.y)


def _quotient(operation: Any, of: Callable[[Any], float]) -> float:
    return of(operation.x) / max(of(operation.y), float(np.finfo(np.float32).tiny))


def _weighted(operation: Any, of: Callable[[Any], float]) -> float:
    return of(operation.x) * of(operation.weight)


def _clip(operation: Any, of: Callable[[Any], float]) -> float:
    return min(of(operation.x), max(abs(float(operation.alpha.val)), abs(float(operation.beta.val))))


def _dequantized(operation: Any, of: Callable[[Any], float]) -> float:
    return calibrated(operation, operation.input)


def calibrated(operation: Any, integers: Any) -> float:
    """Returns the largest magnitude in the range of a quantize or dequantize operation.

    Args:
        operation: The operation, with its scale and zero point.
        integers: The integer value: the input of a dequantize operation, the output of a quantize operation.
    """
    low, high = (0, 255) if integers.is_tensor_or_scalar_of(dtype="uint8") else (-128, 127)
    offset = 0 if operation.zero_point is None else np.asarray(operation.zero_point.val, np.float32)
    reach = np.maximum(np.abs(low - offset), np.abs(high - offset))
    return float(np.max(np.asarray(operation.scale.val, np.float32) * reach))


_RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                *("softmax", "sigmoid", "sigmoid_hard", "tanh", "scaled_tanh", "erf", "sin", "cos", "atan", "sign"),
                *("layer_norm", "instance_norm", "batch_norm", "l2_norm", "local_response_norm", "softsign", "exp"),
                *("log", "rsqrt", "inverse", "random_normal", "random_uniform", "random_bernoulli"),
            ),
            _bounded,
        ),
        "sqrt": _power(0.5),
        "square": _power(2.0),
        "reduce_sum_square": _power(2.0),
        "pow": _pow,
        "mul": _product,
        "matmul": _product,
        "real_div": _quotient,
        "linear": _weighted,
        "conv": _weighted,
        "conv_transpose": _weighted,
        "clip": _clip,
        "dequantize": _dequantized,
    }
)


def magnitudes(block: Any) -> Magnitudes:
    """Returns the nominal magnitudes of the floating-point values of a MIL block. A value that is not listed has 1."""
    found: Magnitudes = {}

    def of(value: Any) -> float:
        return found.get(value, 1.0)

    for operation in block.operations:
        rule = _RULES.get(operation.op_type, _largest_operand)
        size = _constant(operation) if _is_constant(operation) else rule(operation, of)
        # Small factors are no promise that the values behind them are small.
        size = size if _is_constant(operation) else max(size, 1.0)
        for value in operation.outputs:
            if _is_float(value):
                found[value] = size
    return found


def _largest_operand(operation: Any, of: Callable[[Any], float]) -> float:
    operands = [value for given in operation.inputs.values() for value in (given if _is_list(given) else [given])]
    return max((of(value) for value in operands if _is_float(value)), default=1.0)


def _is_constant(operation: Any) -> bool:
    return operation.op_type == "const" or operation.op_type.startswith("constexpr_")


def _constant(operation: Any) -> float:
    largest, size = _extreme(operation)
    return largest if size == 1 or largest > LARGE_WEIGHT else 1.0


def _extreme(operation: Any) -> tuple[float, int]:
    """Returns the largest finite magnitude of a constant, and its number of elements (0 if it is compressed)."""
    named = operation.inputs
    if operation.op_type == "const":
        return _largest(operation.outputs[0].val)
    if "lut" in named:
        return _largest(operation.lut.val)[0], 0
    if "scale" in named:
        data = operation.data if "data" in named else operation.quantized_data
        return _largest(operation.scale.val)[0] * _largest(data.val, integers=True)[0], 0
    return 1.0, 0


def _largest(value: Any, *, integers: bool = False) -> tuple[float, int]:
    array = np.asarray(value)
    if array.size == 0 or not (integers or np.issubdtype(array.dtype, np.floating)):
        return 1.0, 0
    sizes = np.abs(array.astype(np.float32))
    return float(np.max(sizes, where=np.isfinite(sizes), initial=0.0)), array.size


def _is_list(given: Any) -> bool:
    return isinstance(given, (list, tuple))


def _is_float(value: Any) -> bool:
    return isinstance(value, Var) and any(value.is_tensor_or_scalar_of(dtype=name) for name in ("fp16", "fp32"))
