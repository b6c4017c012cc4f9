"""Notes on weights that are stored in more bits than declared, because Core ML does not have the declared type."""

from collections import Counter
from collections.abc import Mapping

from torch.fx import Node

from partitioner.graph.nodes import argument, op_name
from partitioner.limits import INDEX_BITS
from partitioner.refusals import Refusal
from partitioner.support.requirements import RANGE_ARGUMENTS

_INTEGER_BITS = (4, 8)
_WIDEST = 255
_INDICES = "indices of lookup tables"


def storage_notes(decisions: Mapping[Node, Refusal | None], constants: frozenset[str]) -> list[str]:
    """Returns lines for the report, one for each kind of weight that is stored in more bits than declared.

    Args:
        decisions: Every operation -> the reason why Core ML does not take it, or None.
        constants: Names of the values that the Core ML model holds.
    """
    counts: Counter[tuple[str, int, int]] = Counter()
    for node, reason in decisions.items():
        declared = _declared(node) if reason is None and _is_constant(node, constants) else None
        if declared is not None:
            kind, bits = declared
            stored = next(size for size in (INDEX_BITS if kind == _INDICES else _INTEGER_BITS) if size >= bits)
            counts[kind, bits, stored] += stored > bits
    return [
        f"{kind} declared in {bits} bits are stored in {stored}, the next size of Core ML ({count}x)"
        for (kind, bits, stored), count in counts.items()
        if count
    ]


def _is_constant(node: Node, constants: frozenset[str]) -> bool:
    return bool(node.args) and isinstance(node.args[0], Node) and node.args[0].name in constants


def _declared(node: Node) -> tuple[str, int] | None:
    name = op_name(node)
    if name == "quant.dequantize_codebook.default":
        return _INDICES, int(argument(node, 2, "code_book_bits", 8))
    places = RANGE_ARGUMENTS.get(name)
    if places is None:
        return None
    low, high = argument(node, places[0], "quant_min"), argument(node, places[1], "quant_max")
    if low is None or high is None or high - low > _WIDEST:
        return None
    return "weights", max((int(high) - int(low)).bit_length(), 1)
