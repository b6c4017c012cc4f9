"""Packages that lead outside or are damaged."""

import contextlib
import shutil

import pytest
from helpers.packages import X, linear_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partitioner import host
from partitioner.format.blob import write_blob


@pytest.mark.parametrize("escape", ["../weights/weight.bin", "/etc/passwd", "weights/../../secret"])
def test_paths_out_of_the_package_are_refused(blob_files, escape):
    spec = linear_model().get_spec()
    for operation in spec.mlProgram.functions["main"].block_specializations["CoreML7"].operations:
        for value in operation.attributes.values():
            if value.WhichOneof("value") == "blobFileValue":
                value.blobFileValue.fileName = f"@model_path/{escape}"
    path = next(path for path in blob_files if path.endswith(".mlmodel"))
    with pytest.raises(host.ProgramFormatError, match="must be relative and stay inside"):
        host.load(write_blob({**blob_files, path: spec.SerializeToString()}))


def test_links_out_of_the_package_are_refused(package, tmp_path):
    copy = tmp_path / "copy.mlpackage"
    shutil.copytree(package, copy)
    (weight,) = copy.rglob("weight.bin")
    secret = tmp_path / "weight.bin"
    weight.rename(secret)
    weight.symlink_to(secret)
    with pytest.raises(host.ProgramFormatError, match="leads outside"):
        host.load(copy)


def _corrupted(blob_files, name, data):
    return write_blob({**blob_files, next(path for path in blob_files if path.endswith(name)): data})


@pytest.mark.parametrize("name", ["Manifest.json", "model.mlmodel", "weight.bin", "metadata.json"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_corrupt_files_give_named_errors(blob_files, name, data):
    original = next(content for path, content in blob_files.items() if path.endswith(name))
    position = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    if data.draw(st.booleans()):
        del changed[position:]
    else:
        changed[position] ^= 1 << data.draw(st.integers(0, 7))
    # Some changes only alter numbers; whatever fails must fail with an error of the runtime.
    with contextlib.suppress(host.HostError):
        host.load(_corrupted(blob_files, name, bytes(changed))).predict({"x": X})


@pytest.mark.parametrize("cut", [0, 10, 64, 100, 130])
def test_truncated_weights_are_named(blob_files, cut):
    weights = next(content for path, content in blob_files.items() if path.endswith("weight.bin"))
    with pytest.raises(host.ProgramFormatError, match=r"weights/weight.bin"):
        host.load(_corrupted(blob_files, "weight.bin", weights[:cut]))
