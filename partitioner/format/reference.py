"""References from a delegate to a blob in the named data of the program, for methods that share one model.

Layout (the one that ExecuTorch's Core ML delegate reads on the device): ``CMJR``, then JSON with a version, the key of
the named data, and the name of the function.
"""

import json
from typing import NamedTuple

from partitioner.errors import BlobError

_MAGIC = b"CMJR"
_VERSION = 1


class Reference(NamedTuple):
    """A reference to a model in the named data of a program.

    Attributes:
        key: The key of the named data.
        function: The name of the model's function, or None for the default one.
    """

    key: str
    function: str | None


def write_reference(key: str, function: str) -> bytes:
    """Returns the bytes of a reference to a function of the model under a key of the program's named data."""
    return _MAGIC + json.dumps({"version": _VERSION, "key": key, "functionName": function}).encode()


def read_reference(data: bytes | memoryview) -> Reference | None:
    """Returns the reference that a delegate holds, or None when it holds a blob.

    Raises:
        BlobError: The reference is damaged.
    """
    if bytes(data[: len(_MAGIC)]) != _MAGIC:
        return None
    try:
        content = json.loads(bytes(data[len(_MAGIC) :]))
    except (ValueError, RecursionError) as error:
        raise BlobError(f"the delegate's reference to named data is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BlobError("the delegate's reference to named data is not a JSON object")
    key, function = content.get("key"), content.get("functionName")
    if not isinstance(key, str) or not isinstance(function, str | None):
        raise BlobError(f"the delegate's reference names the key {key!r} and the function {function!r}: no text")
    return Reference(key, function)
