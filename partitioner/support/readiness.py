"""Programs that are not ready to be lowered: exported in training mode, or prepared for quantization only."""

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from torch.export import ExportedProgram
from torch.fx import Node

from partitioner.errors import UnsupportedOpError
from partitioner.graph.nodes import argument, op_name, place

_MOST_PLACES = 5


def _trains_statistics(node: Node) -> bool:
    """Returns whether a norm updates running statistics; without any, it does the same in either mode."""
    return bool(argument(node, 5, "training")) and argument(node, 3, "running_mean") is not None


def _drops(node: Node) -> bool:
    return float(argument(node, 4, "dropout_p", 0.0)) > 0


_TRAINING: Mapping[str, Callable[[Node], bool]] = MappingProxyType(
    {
        "aten.batch_norm.default": _trains_statistics,
        "aten.native_batch_norm.default": _trains_statistics,
        "aten._native_batch_norm_legit.default": _trains_statistics,
        "aten._native_batch_norm_legit_functional.default": _trains_statistics,
        "aten.scaled_dot_product_attention.default": _drops,
    }
)
"""Operator that computes something else in training -> whether a call does."""

_OBSERVER = re.compile(r"\bactivation_post_process_\d+")
"""The names that PT2E gives to the observers and fake quantizers in a graph."""


_FOREIGN_WEIGHTS: Mapping[str, str] = MappingProxyType({"Int8Tensor": "Int8WeightOnlyConfig"})
"""torchao's classes of weights that are multiplied as integers -> the configuration that makes them."""


def refuse_foreign_weights(program: ExportedProgram) -> None:
    """Refuses weights in a form that Core ML has no operations for.

    Args:
        program: What `torch.export.export` returns.

    Raises:
        UnsupportedOpError: Names the weights, and the configuration to quantize them with.
    """
    found = {
        name: _FOREIGN_WEIGHTS[type(value).__name__]
        for name, value in program.state_dict.items()
        if type(value).__name__ in _FOREIGN_WEIGHTS
    }
    if found:
        raise UnsupportedOpError(
            "Core ML has no multiplication by 8-bit integers, which torchao exports of these weights:\n"
            + "\n".join(_first(f"{name!r}, of {made_by}" for name, made_by in found.items()))
            + "\nQuantize the float model anew: quantize_(model, IntxWeightOnlyConfig(torch.int8, PerAxis(0)))"
        )


def refuse_unfinished(program: ExportedProgram) -> None:
    """Refuses a program that is in training, or whose quantization was not converted.

    Args:
        program: What `torch.export.export` returns.

    Raises:
        UnsupportedOpError: Names operations, their source lines and the call that is missing.
    """
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    prepared = [name for node in nodes if (name := _observer(node)) is not None]
    if prepared:
        raise UnsupportedOpError(
            "the program was prepared for quantization, and its observers and fake quantizers are still in it:\n"
            + "\n".join(_first(prepared))
            + "\nCall convert_pt2e(prepared), or LinearQuantizer.finalize(), before torch.export.export"
        )
    training = [node for node in nodes if (trains := _TRAINING.get(op_name(node))) is not None and trains(node)]
    if training:
        raise UnsupportedOpError(
            "the program was exported in training mode:\n"
            + "\n".join(_first(map(place, training)))
            + "\nCall model.eval() before torch.export.export; where a function takes dropout_p or training, pass "
            "dropout_p=0.0 or training=False"
        )


def random_notes(nodes: Iterable[Node]) -> list[str]:
    """Returns notes for the report: that results are random, if dropouts are active in the program.

    Args:
        nodes: The operations of an edge program.
    """
    found = [node for node in nodes if op_name(node) == "aten.native_dropout.default"]
    note = (
        f"results are random, because dropouts drop ({len(found)}x); unless that is wanted, call model.eval() before "
        "torch.export.export"
    )
    return [note] if found else []


def _observer(node: Node) -> str | None:
    """Returns the observer that an operation belongs to, or the operation itself when it is a fake quantizer."""
    stack = node.meta.get("nn_module_stack") or {}
    found = next((match for entry in stack.values() if (match := _OBSERVER.search(str(entry[0])))), None)
    if found is not None:
        return found.group()
    return place(node) if "fake_quantize" in op_name(node) else None


def _first(places: Iterable[str]) -> list[str]:
    lines = list(dict.fromkeys(places))
    more = [f"  and {len(lines) - _MOST_PLACES} more"] if len(lines) > _MOST_PLACES else []
    return [f"  {line}" for line in lines[:_MOST_PLACES]] + more
