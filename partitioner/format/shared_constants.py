"""Removal of repeated small constants from a model.

Core ML Tools writes each argument of each operation as a separate constant. An axis or a flag takes a hundred bytes.
In a small model, these constants are most of the bytes beside the weights.
"""

from collections.abc import Iterator
from typing import Any

_CONSTANT = "const"
_VALUE = "val"


def share_constants(model: Any) -> None:
    """Removes, in place, the constants that repeat an earlier one of the same block.

    Args:
        model: The ``Model`` protobuf of an ML program. Constants in the weight file stay as they are: Core ML Tools
            has already found equal ones.
    """
    for function in model.mlProgram.functions.values():
        for block in function.block_specializations.values():
            _share(block, {})


def _share(block: Any, renamed: dict[str, str]) -> None:
    """Removes repeated constants from a block.

    Args:
        block: The block, changed in place.
        renamed: Constants that were removed from the blocks around it -> the constants to read instead.
    """
    first: dict[bytes, str] = {}
    renamed = dict(renamed)
    kept = []
    for operation in block.operations:
        key = _key(operation)
        name = operation.outputs[0].name if key is not None else ""
        if key is not None and name not in block.outputs and key in first:
            renamed[name] = first[key]
            continue
        if key is not None:
            first.setdefault(key, name)
        kept.append(operation)
        for binding in _bindings(operation):
            if binding.name in renamed:
                binding.name = renamed[binding.name]
        for inner in operation.blocks:
            _share(inner, renamed)
    if len(kept) < len(block.operations):
        copies = [type(operation).FromString(operation.SerializeToString()) for operation in kept]
        del block.operations[:]
        block.operations.extend(copies)
    for index, output in enumerate(block.outputs):
        block.outputs[index] = renamed.get(output, output)


def _bindings(operation: Any) -> Iterator[Any]:
    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name":
                yield binding


def _key(operation: Any) -> bytes | None:
    """Returns the type and value of a constant inside the protobuf, or None for any other operation."""
    if operation.type != _CONSTANT or operation.attributes[_VALUE].WhichOneof("value") != "immediateValue":
        return None
    content: bytes = operation.attributes[_VALUE].SerializeToString(deterministic=True)
    kind: bytes = operation.outputs[0].type.SerializeToString(deterministic=True)
    return kind + b"\0" + content
