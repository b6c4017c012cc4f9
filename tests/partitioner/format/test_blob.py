"""The blob round-trips through our reader and the native one, and malformed bytes are refused."""

import json
from pathlib import Path

import pytest
from executorch.backends.apple.coreml import executorchcoreml
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioner.errors import BlobError
from partitioner.format import blob as blob_module
from partitioner.format.blob import read_blob, write_blob

_FORBIDDEN = "/\\\0"
_names = st.text(st.characters(blacklist_characters=_FORBIDDEN, blacklist_categories=["Cs"]), min_size=1, max_size=8)
_safe_names = _names.filter(lambda name: name not in (".", ".."))
_leaf = st.binary(max_size=64)
_trees = st.recursive(_leaf, lambda child: st.dictionaries(_safe_names, child, min_size=1, max_size=4), max_leaves=12)
_roots = st.dictionaries(_safe_names, _trees, min_size=1, max_size=4)

PACKAGE = {
    "metadata.json": b'{"identifier":"x"}',
    "model.mlpackage/Manifest.json": b"{}",
    "model.mlpackage/Data/com.apple.CoreML/model.mlmodel": b"\x00\x01{}\x02",
    "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin": bytes(range(256)),
}


def flatten(tree: dict, prefix: str = "") -> dict[str, bytes]:
    files = {}
    for name, entry in tree.items():
        path = prefix + name
        files.update(flatten(entry, path + "/") if isinstance(entry, dict) else {path: entry})
    return files


def forge(nodes: object, payload: bytes = b"") -> bytes:
    return payload + json.dumps({"nodes": nodes}, separators=(",", ":")).encode()[::-1]


def node(name: str, kind: int = 0, offset: int = 0, size: int = 0, children: object = None) -> dict:
    region = {"offset": offset, "size": size}
    return {"children": {} if children is None else children, "dataRegion": region, "kind": kind, "name": name}


def read_dir(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@given(_roots)
@settings(deadline=None, max_examples=150)
def test_round_trip(tree: dict) -> None:
    files = flatten(tree)
    assert {path: bytes(view) for path, view in read_blob(write_blob(files)).items()} == files


@given(_roots)
@settings(deadline=None, max_examples=50)
def test_bytes_do_not_depend_on_the_order_of_the_mapping(tree: dict) -> None:
    files = flatten(tree)
    assert write_blob(files) == write_blob(dict(reversed(files.items())))


def test_native_reader_unpacks_our_blob(tmp_path: Path) -> None:
    assert executorchcoreml.unflatten_directory_contents(write_blob(PACKAGE), str(tmp_path))
    assert read_dir(tmp_path / "lowered_module") == PACKAGE


def test_our_reader_unpacks_the_native_blob(tmp_path: Path) -> None:
    root = tmp_path / "lowered_module"
    for path, content in PACKAGE.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    native = executorchcoreml.flatten_directory_contents(str(root))
    assert {path: bytes(view) for path, view in read_blob(native).items()} == PACKAGE


def test_large_blobs_align_files_to_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_module, "_ALIGN_ABOVE_BYTES", 100)
    blob = write_blob(PACKAGE)
    assert executorchcoreml.unflatten_directory_contents(blob, str(tmp_path))
    assert read_dir(tmp_path / "lowered_module") == PACKAGE
    weights = read_blob(blob)["model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"]
    assert blob.index(bytes(weights)) % 16384 == 0


def test_views_share_the_blob_memory() -> None:
    storage = bytearray(write_blob({"a": b"old"}))
    view = read_blob(memoryview(storage))["a"]
    storage[0:3] = b"new"
    assert bytes(view) == b"new"


def test_metadata_longer_than_the_first_guess() -> None:
    files = {f"directory/{index:05d}": b"%d" % index for index in range(2000)}
    assert {path: bytes(view) for path, view in read_blob(write_blob(files)).items()} == files


@pytest.mark.parametrize(
    "files",
    [{}, {"": b""}, {"/a": b""}, {"a/../b": b""}, {"./a": b""}, {"a//b": b""}, {"a\\b": b""}, {"a": b"", "a/b": b""}],
)
def test_unstorable_paths_are_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(BlobError):
        write_blob(files)


MALFORMED = {
    "empty": b"",
    "text": b"hello",
    "only a brace": b"{",
    "no nodes": b"{}"[::-1],
    "nodes empty": forge([]),
    "nodes not a list": forge({}),
    "root is a file": forge([node("lowered_module")]),
    "escape": forge([node("..", size=1), node("lowered_module", 1, children={"..": 0})], b"x"),
    "absolute": forge([node("/etc"), node("lowered_module", 1, children={"/etc": 0})]),
    "own child": forge([node("lowered_module", 1, children={"a": 0})]),
    "shared child": forge([node("a"), node("lowered_module", 1, children={"a": 0, "b": 0})]),
    "index too large": forge([node("lowered_module", 1, children={"a": 7})]),
    "negative index": forge([node("a"), node("lowered_module", 1, children={"a": -1})]),
    "boolean index": forge([node("a"), node("b"), node("lowered_module", 1, children={"a": True})]),
    "region outside": forge([node("a", offset=0, size=2), node("lowered_module", 1, children={"a": 0})], b"x"),
    "region huge": forge([node("a", size=1 << 80), node("lowered_module", 1, children={"a": 0})]),
    "unknown kind": forge([node("lowered_module", 2)]),
    "file with children": forge([node("a"), node("b", children={"a": 0}), node("r", 1, children={"b": 1})]),
    "name not text": forge([{**node("a"), "name": 3}, node("lowered_module", 1, children={"a": 0})]),
    "field missing": forge([{"name": "a"}]),
    "deep nesting": (b'{"nodes":' + b"[" * 200_000)[::-1],
    "long number": (b'{"nodes":' + b"1" * 9999 + b"}")[::-1],
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_blobs_are_refused(data: bytes) -> None:
    with pytest.raises(BlobError):
        read_blob(data)


@given(st.binary(max_size=300), st.integers(0, 300), st.integers(0, 255))
@settings(deadline=None, max_examples=300)
def test_corruption_never_raises_anything_else(noise: bytes, position: int, value: int) -> None:
    blob = bytearray(write_blob(PACKAGE))
    blob[-1 - position] = value
    for data in (noise, noise + b"{", bytes(blob), bytes(blob[position:]), bytes(blob[: len(blob) - position])):
        try:
            files = read_blob(data)
        except BlobError:
            continue
        assert all(len(view) <= len(data) for view in files.values())
