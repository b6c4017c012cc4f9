"""Every place that a program can be read from, and what is refused there."""

import json
import subprocess
import sys

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.models.datatypes import Array
from coremltools.models.neural_network import NeuralNetworkBuilder
from helpers.mil import convert
from helpers.packages import WEIGHT, X, linear_model, package_files

from partitioner import host
from partitioner.format.blob import write_blob


def test_every_source_gives_the_same_program(package, blob_files, tmp_path):
    blob = write_blob(blob_files)
    (tmp_path / "blob").write_bytes(blob)
    for source in (linear_model(), package, str(package), blob, memoryview(blob), tmp_path / "blob"):
        program = host.load(source)
        assert [(feature.name, feature.shape) for feature in program.inputs] == [("x", (1, 8))]
        np.testing.assert_array_equal(program.predict({"x": X})["y"], X @ WEIGHT.T)
        (output,) = program.run([torch.from_numpy(X)])
        np.testing.assert_array_equal(output.numpy(), X @ WEIGHT.T)


def test_positional_order_is_the_one_of_the_blob():
    inputs = {"a": X, "b": 2 * X}
    model = convert(lambda a, b: [mb.sub(x=a, y=b, name="c"), mb.add(x=a, y=b, name="d")], inputs)
    files = package_files(model)
    metadata = {"inputNames": ["b", "a"], "outputNames": ["d", "c"]}
    program = host.load(write_blob({"metadata.json": json.dumps(metadata).encode(), **files}))
    d, c = program.run([torch.from_numpy(2 * X), torch.from_numpy(X)])
    np.testing.assert_array_equal(d.numpy(), 3 * X)
    np.testing.assert_array_equal(c.numpy(), -X)


def test_neural_networks_are_refused():
    builder = NeuralNetworkBuilder([("x", Array(3))], [("y", Array(3))])
    builder.add_activation("a", "RELU", "x", "y")
    model = ct.models.MLModel(builder.spec)
    with pytest.raises(host.ProgramFormatError, match="not an ML Program: the model is of type neuralNetwork"):
        host.load(model)


def test_other_bytes_are_refused(tmp_path):
    for data in (b"", b"ET12", b"hello", bytes(100)):
        with pytest.raises(host.ProgramFormatError, match=r"not a \.pte program, and not a delegate blob"):
            host.load(data)
    with pytest.raises(host.ProgramFormatError, match=r"there is no file '.*missing'; check the path"):
        host.load(tmp_path / "missing")


def test_errors_while_planning_name_the_package(tmp_path):
    model = convert(lambda x: mb.relu(x=x, name="y"), {"x": X})
    path = tmp_path / "odd.mlpackage"
    model.save(str(path))
    spec_path = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = model.get_spec()
    operation = next(
        op for op in spec.mlProgram.functions["main"].block_specializations["CoreML7"].operations if op.type == "relu"
    )
    operation.inputs["slope"].CopyFrom(operation.inputs["x"])
    spec_path.write_bytes(spec.SerializeToString())
    program = host.load(path)
    with pytest.raises(host.ProgramFormatError, match=r"odd\.mlpackage: relu 'y': unknown parameter\(s\) \['slope'\]"):
        program.predict({"x": X})


def test_importing_the_host_runtime_is_light():
    heavy = ("coremltools", "executorch")
    code = f"import sys; from partitioner import host; host.load; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    assert result.stderr == ""
