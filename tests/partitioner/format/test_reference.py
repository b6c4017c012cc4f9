"""References to a model in the named data of a program."""

import json

import pytest

from partitioner.errors import BlobError
from partitioner.format.reference import Reference, read_reference, write_reference


def test_what_is_written_is_read() -> None:
    assert read_reference(write_reference("coreml_1", "decode")) == Reference("coreml_1", "decode")


def test_the_bytes_are_those_that_the_device_reads() -> None:
    data = write_reference("coreml_1", "decode")
    assert data[:4] == b"CMJR"
    assert json.loads(data[4:]) == {"version": 1, "key": "coreml_1", "functionName": "decode"}


def test_a_blob_is_no_reference() -> None:
    assert read_reference(b"") is None
    assert read_reference(memoryview(b"model.mlpackage")) is None


def test_the_function_may_be_left_out() -> None:
    assert read_reference(b'CMJR{"key": "a"}') == Reference("a", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "is not a JSON object"),
        (b"{}", "names the key None"),
        (b'{"key": 3}', "names the key 3"),
        (b'{"key": "a", "functionName": []}', r"and the function \[\]"),
    ],
)
def test_damaged_references_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(BlobError, match=message):
        read_reference(b"CMJR" + content)
