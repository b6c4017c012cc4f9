"""What must hold for the quantize and dequantize operations of a lowered program, so that Core ML can use them."""

from collections.abc import Callable, Iterator

from helpers.mil_program import Op, walk

PRODUCTS = frozenset({"conv", "conv_transpose", "linear", "matmul"})
"""Operations that have an int8 form."""

MOVES = frozenset(
    {
        "reshape", "transpose", "slice_by_index", "slice_by_size", "squeeze", "expand_dims", "split", "concat", "stack",
        "identity", "pad", "tile", "max_pool", "avg_pool", "reduce_mean", "reduce_max", "upsample_nearest_neighbor",
        "upsample_bilinear", "pixel_shuffle", "gather", "gather_along_axis", "resize_nearest_neighbor", "cast",
        "depth_to_space", "space_to_depth", "reverse",
    }
)  # fmt: skip
"""Operations whose output has the parameters of their input."""

ACTIVATIONS = frozenset(
    {
        "relu", "relu6", "leaky_relu", "prelu", "elu", "gelu", "silu", "sigmoid", "sigmoid_hard", "tanh", "softplus",
        "clip", "clamped_relu", "thresholded_relu", "softsign", "scaled_tanh", "linear_activation", "batch_norm",
    }
)  # fmt: skip
"""What may stand between a product and its quantize."""

BINARY = frozenset({"add", "sub", "mul", "real_div", "maximum", "minimum"})
FIXED_SCALES = (1 / 256, 2 / 256)
"""Scales of outputs whose range is known; they never join those of other tensors."""


def problems(ops: list[Op]) -> list[str]:
    """Everything that is wrong with where a program quantizes."""
    return [*_products(ops), *_requantized(ops), *_sums(ops), *_lone(ops)]


def _moves(op: Op) -> bool:
    return op.kind in MOVES


def _producers(op: Op) -> list[Op]:
    return op.variable


def _readers(op: Op) -> list[Op]:
    return op.readers


def _sources(op: Op) -> list[Op]:
    return list(walk(op, _producers, _moves))


def _is_constant_map(op: Op) -> bool:
    """A bias, a scale, or a part of an activation that Core ML has no single operation for."""
    return op.kind in BINARY and len(op.variable) == 1


def _in_attention(op: Op) -> bool:
    """Whether `op` is a product inside of an attention operator, on one side of its softmax."""

    def scores(found: Op) -> bool:
        return _moves(found) or found.kind in BINARY or found.kind in ("select", "cast")

    before = any(found.kind == "softmax" for found in walk(op, _producers, scores))
    after = any(found.kind == "softmax" for found in walk(op, _readers, scores))
    return before or after


def _products(ops: list[Op]) -> Iterator[str]:
    """Every product reads what `dequantize` wrote, and is read by `quantize` through its activation."""
    for op in ops:
        if op.kind not in PRODUCTS:
            continue
        attends = op.kind == "matmul" and _in_attention(op)
        for source in _sources(op):
            if source.kind != "dequantize" and not (attends and source.kind in ("softmax", *BINARY)):
                yield f"{op} reads {source}, which is not dequantized"

        def fused(found: Op) -> bool:
            activates = found.kind in ACTIVATIONS or _is_constant_map(found) or found.kind in BINARY
            return activates or _moves(found)

        for reader in walk(op, _readers, fused):
            if reader.kind != "quantize" and not attends:
                yield f"{op} is read by {reader}, and not quantized"


def _requantized(ops: list[Op]) -> Iterator[str]:
    """Nothing is dequantized and quantized with other parameters when only moves lie between."""
    for op in ops:
        if op.kind != "quantize":
            continue
        given = [source for source in _sources(op) if source.kind == "dequantize"]
        mixes = len(given) > 1 and any(source.values["scale"] in FIXED_SCALES for source in given)
        for source in given:
            if source.qparams != op.qparams and not mixes:
                yield f"{op} quantizes by {op.qparams} what {source} dequantized by {source.qparams}"


def _sums(ops: list[Op]) -> Iterator[str]:
    """Residual additions have both of their inputs quantized, or none."""
    for op in ops:
        if op.kind != "add" or len(op.variable) != 2 or _in_attention(op):
            continue
        quantized = [_is_dequantized(operand) for operand in op.variable]
        if any(quantized) and not all(quantized):
            yield f"{op} adds {op.variable}, of which only one is quantized"


def _is_dequantized(op: Op) -> bool:
    return op.kind == "dequantize" or (_moves(op) and all(source.kind == "dequantize" for source in _sources(op)))


def _lone(ops: list[Op]) -> Iterator[str]:
    """No value is quantized between float operations: its producer or one of its readers works on quantized values."""
    for op in ops:
        if op.kind != "quantize":
            continue
        makers = _sources(op)
        readers = [
            reader
            for found in walk(op, _readers, _moves)
            if found.kind == "dequantize"
            for reader in walk(found, _readers, lambda x: _moves(x) or x.kind == "quantize" or x.kind == "dequantize")
        ]
        made = any(found.kind == "dequantize" or _reaches(found, _producers, "dequantize") for found in makers)
        used = any(_reaches(found, _readers, "quantize") for found in readers)
        if not made and not used:
            yield f"{op} is quantized between {makers} and {readers}, which compute in floating point"


def _reaches(op: Op, step: Callable[[Op], list[Op]], kind: str) -> bool:
    """Whether `op` is a product, or reads what was dequantized (or writes what will be quantized), with activations."""
    if op.kind in PRODUCTS or op.kind == "scaled_dot_product_attention":
        return True
    if op.kind not in BINARY | ACTIVATIONS | MOVES:
        return False

    def fused(found: Op) -> bool:
        return _moves(found) or found.kind in ACTIVATIONS or found.kind in BINARY

    return any(found.kind in (kind, *PRODUCTS) for found in walk(op, step, fused))
