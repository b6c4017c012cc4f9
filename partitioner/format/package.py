"""Canonical mlpackages: a converted model as bytes that depend only on the model.

Core ML Tools writes the date, tool versions and random UUIDs, and it writes protobuf maps in memory order. Here the
protobuf is serialized with sorted maps and without build notes, and every identifier is derived from the content. The
device caches compiled models under the identifier, and would run a stale model if two contents shared one.
"""

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from partitioner.format.paths import (
    AUTHOR,
    MANIFEST_FILE,
    METADATA_FILE,
    MODEL_DIRECTORY,
    SPEC_FILE,
    SPEC_ITEM,
    WEIGHT_FILE,
    WEIGHTS_ITEM,
)
from partitioner.format.shared_constants import share_constants

_ITEM_DESCRIPTIONS = {SPEC_ITEM: "CoreML Model Specification", WEIGHTS_ITEM: "CoreML Model Weights"}
_BUILD_NOTES = "buildInfo"


def package_files(spec: Any, weights: bytes | None) -> dict[str, bytes]:
    """Lays out an mlpackage.

    Args:
        spec: The ``Model`` protobuf. Its build notes and repeated constants are removed in place.
        weights: The content of the weight file, or None when every constant is inside the spec.

    Returns:
        Paths relative to the package and their contents, equal for equal models.
    """
    model = _canonical_spec(spec)
    items = {SPEC_ITEM: {SPEC_FILE: model}}
    if weights is not None:
        items[WEIGHTS_ITEM] = {WEIGHT_FILE: weights}
    files = {path: content for item in items.values() for path, content in item.items()}
    return {MANIFEST_FILE: _manifest(items, _digest(files)), **files}


def module_files(
    model: Mapping[str, bytes], names: Mapping[str, Any], directory: str = MODEL_DIRECTORY
) -> dict[str, bytes]:
    """Lays out the files that the delegate reads: the model and its metadata.

    Args:
        model: The files of the mlpackage or of the compiled model.
        names: The content of `metadata.json` without the identifier: ``inputNames`` and ``outputNames``, or
            ``methods``.
        directory: The name under which the delegate finds the model.

    Returns:
        The files of the delegate's root directory.
    """
    metadata = _json({"identifier": identifier(model, names), **names})
    return {METADATA_FILE: metadata, **{f"{directory}/{path}": content for path, content in model.items()}}


def identifier(model: Mapping[str, bytes], names: Mapping[str, Any]) -> str:
    """Returns the cache key of a model on the device: a hash of its files and of its names in the metadata."""
    return "executorch_" + _digest({**model, METADATA_FILE: _json(names)}).hex()


def _canonical_spec(spec: Any) -> bytes:
    spec.description.metadata.ClearField("userDefined")
    if _BUILD_NOTES in spec.mlProgram.attributes:
        del spec.mlProgram.attributes[_BUILD_NOTES]
    share_constants(spec)
    return spec.SerializeToString(deterministic=True)


def _manifest(items: Iterable[str], content: bytes) -> bytes:
    keys = {item: str(uuid.UUID(bytes=hashlib.sha256(content + item.encode()).digest()[:16])) for item in items}
    entries = {
        keys[item]: {
            "author": AUTHOR,
            "description": _ITEM_DESCRIPTIONS[item],
            "name": item,
            "path": f"{AUTHOR}/{item}",
        }
        for item in items
    }
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": keys[SPEC_ITEM]}
    return _json(manifest)


def _digest(files: Mapping[str, bytes]) -> bytes:
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(f"{path}\0{len(files[path])}\0".encode())
        total.update(files[path])
    return total.digest()


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
