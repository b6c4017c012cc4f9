"""The delegate blob: a directory tree flattened into bytes.

Layout (the one ExecuTorch's Core ML delegate reads on the device)::

    file bytes | zero padding | reversed compact JSON

The JSON is ``{"nodes": [{"children": {name: index}, "dataRegion": {"offset", "size"}, "kind", "name"}]}`` in
post-order, the root last; kind is 0 for a file and 1 for a directory. The JSON is stored reversed, so that a reader
finds its first character at the end of the blob.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from partitioner.errors import BlobError

ROOT_NAME = "lowered_module"

_FILE, _DIRECTORY = 0, 1
_MAX_METADATA_BYTES = 10 * 1024 * 1024
_FIRST_METADATA_GUESS = 64 * 1024
_ALIGN_ABOVE_BYTES = 1 << 30
"""The size above which the device maps regions instead of copying them."""

_PAGE_BYTES = 16384
"""The size of a page; a mapping starts on a page."""


@dataclass
class _Directory:
    children: "dict[str, _Directory | bytes]" = field(default_factory=dict)


def write_blob(files: Mapping[str, bytes]) -> bytes:
    """Flattens files into one delegate blob.

    Args:
        files: POSIX paths relative to the root directory (``"metadata.json"``,
            ``"model.mlpackage/Manifest.json"``) and their contents.

    Returns:
        The blob. Equal mappings give equal bytes; the order of the files does not matter.

    Raises:
        BlobError: There is no file, a path is empty, is absolute or leaves the root, a path is both file and
            directory, or the tree needs more metadata than a reader accepts.
    """
    tree = _build_tree(files)
    total = sum(len(content) for content in files.values())
    writer = _Writer(alignment=_PAGE_BYTES if total > _ALIGN_ABOVE_BYTES else 1)
    writer.add(ROOT_NAME, tree)
    metadata = json.dumps({"nodes": writer.nodes}, separators=(",", ":")).encode()
    if len(metadata) > _MAX_METADATA_BYTES:
        raise BlobError(
            f"{len(files)} files need {len(metadata)} bytes of blob metadata; a reader accepts {_MAX_METADATA_BYTES}"
        )
    return b"".join([*writer.chunks, metadata[::-1]])


def read_blob(data: "bytes | memoryview") -> dict[str, memoryview]:
    """Reads the files of a delegate blob without copying them.

    Args:
        data: The whole blob.

    Returns:
        Relative POSIX path -> view into ``data``, in the order of the stored tree.

    Raises:
        BlobError: The blob is truncated or malformed, a region lies outside it, or a name could leave the root.
    """
    view = memoryview(data).cast("B")
    nodes, payload_bytes = _read_nodes(view)
    claimed = [False] * len(nodes)
    files: dict[str, memoryview] = {}
    pending: list[tuple[int, str]] = [(len(nodes) - 1, "")]
    while pending:
        index, path = pending.pop()
        node = nodes[index]
        if node.kind == _FILE:
            if not path:
                raise BlobError("the root of a delegate blob must be a directory, not a file")
            files[path] = _region(view, node, path, payload_bytes)
            continue
        # Post-order rules out cycles; one parent per node rules out paths that multiply.
        for name, child in reversed(node.children.items()):
            if not 0 <= child < index or claimed[child]:
                raise BlobError(f"directory {path or ROOT_NAME!r} of the blob lists an invalid child {name!r}: {child}")
            claimed[child] = True
            pending.append((child, f"{path}/{name}" if path else name))
    return files


class _Writer:
    """A writer that collects nodes in post-order, and the byte chunks that they point into."""

    def __init__(self, alignment: int) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.chunks: list[bytes] = []
        self._offset = 0
        self._alignment = alignment

    def add(self, name: str, entry: "_Directory | bytes") -> int:
        if isinstance(entry, _Directory):
            children = {child: self.add(child, entry.children[child]) for child in sorted(entry.children)}
            return self._append(name, _DIRECTORY, 0, 0, children)
        padding = -self._offset % self._alignment
        self.chunks += [bytes(padding), bytes(entry)]
        start = self._offset + padding
        self._offset = start + len(entry)
        return self._append(name, _FILE, start, len(entry), {})

    def _append(self, name: str, kind: int, offset: int, size: int, children: dict[str, int]) -> int:
        region = {"offset": offset, "size": size}
        self.nodes.append({"children": children, "dataRegion": region, "kind": kind, "name": name})
        return len(self.nodes) - 1


def _build_tree(files: Mapping[str, bytes]) -> _Directory:
    if not files:
        raise BlobError("a delegate blob needs at least one file")
    root = _Directory()
    for path in sorted(files):
        directory = root
        *parents, name = path.split("/")
        for part in (*parents, name):
            _check_name(part, path)
        for part in parents:
            entry = directory.children.setdefault(part, _Directory())
            if not isinstance(entry, _Directory):
                raise BlobError(f"blob path {path!r} runs through {part!r}, which is a file")
            directory = entry
        if name in directory.children:
            raise BlobError(f"blob path {path!r} is both a file and a directory")
        directory.children[name] = files[path]
    return root


def _check_name(name: str, path: str) -> None:
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
        raise BlobError(f"invalid name {name!r} in blob path {path!r}: paths must be relative and stay inside the root")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise BlobError(f"name {name!r} in a blob path is not valid Unicode") from error


@dataclass(frozen=True)
class _Node:
    kind: int
    offset: int
    size: int
    children: dict[str, int]


def _read_nodes(view: memoryview) -> tuple[list[_Node], int]:
    """Returns the nodes and the number of bytes before the metadata."""
    text = _metadata_text(view)
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BlobError(f"unreadable metadata at the end of the delegate blob: {error}") from None
    entries = metadata.get("nodes") if isinstance(metadata, dict) else None
    if not isinstance(entries, list) or not entries:
        raise BlobError('the metadata of the delegate blob has no "nodes" list')
    return [_parse_node(entry, index) for index, entry in enumerate(entries)], len(view) - len(text)


def _metadata_text(view: memoryview) -> bytes:
    if not view or view[-1] != ord("{"):
        raise BlobError(f"not a delegate blob: {len(view)} bytes that do not end in reversed JSON metadata")
    reason = "no metadata"
    for size in _metadata_guesses(len(view)):
        tail = bytes(view[len(view) - size :])[::-1]
        try:
            # Latin-1 keeps one character a byte, so the end of the JSON is a byte offset.
            _, end = json.JSONDecoder().raw_decode(tail.decode("latin-1"))
        except (ValueError, RecursionError) as error:
            reason = str(error)
            continue
        return tail[:end]
    raise BlobError(f"unreadable metadata at the end of the delegate blob: {reason}")


def _metadata_guesses(available: int) -> Iterator[int]:
    limit = min(available, _MAX_METADATA_BYTES)
    size = min(_FIRST_METADATA_GUESS, limit)
    while size < limit:
        yield size
        size = min(size * 16, limit)
    yield limit


def _parse_node(entry: Any, index: int) -> _Node:
    try:
        region, children, kind, name = entry["dataRegion"], entry["children"], entry["kind"], entry["name"]
        offset, size = region["offset"], region["size"]
    except (KeyError, TypeError, IndexError) as error:
        raise BlobError(f"node {index} of the delegate blob lacks a field: {error!r}") from None
    numbers = (kind, offset, size, *(children.values() if isinstance(children, dict) else ("not a mapping",)))
    if any(type(number) is not int or number < 0 for number in numbers) or kind not in (_FILE, _DIRECTORY):
        raise BlobError(f"node {index} of the delegate blob has an invalid kind, region or children")
    if kind == _FILE and children:
        raise BlobError(f"node {index} of the delegate blob is a file and has children")
    for part in (name, *children):
        if not isinstance(part, str):
            raise BlobError(f"node {index} of the delegate blob has a name that is not a string: {part!r}")
        _check_name(part, part)
    return _Node(kind, offset, size, children)


def _region(view: memoryview, node: _Node, path: str, payload_bytes: int) -> memoryview:
    end = node.offset + node.size
    if end > payload_bytes:
        raise BlobError(
            f"file {path!r} of the delegate blob ends at byte {end}, but only {payload_bytes} bytes of data are there"
        )
    return view[node.offset : end]
