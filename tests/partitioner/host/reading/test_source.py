"""What `host.load` and `host.run` say to objects, paths and files that are no programs."""

import io
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.models.datatypes import Array
from coremltools.models.neural_network import NeuralNetworkBuilder
from executorch.exir import to_edge_transform_and_lower
from helpers import pte_models
from helpers.mil import convert
from torch.export import export

from partitioner import CoreMLPartitioner, host

X = np.arange(3, dtype=np.float32)
ACCEPTED = {"load": r"give \.pte bytes \(`program\.buffer`", "run": r"give the bytes of a \.pte.*`program\.buffer`"}
CALLS = {"load": host.load, "run": lambda given: host.run(given, torch.zeros(3))}
both = pytest.mark.parametrize("call", ["load", "run"])


@pytest.fixture(scope="module")
def model():
    return convert(lambda x: mb.mul(x=x, y=np.float32(2.0), name="y"), {"x": X})


@pytest.fixture(scope="module")
def package(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "double.mlpackage"
    model.save(str(path))
    return path


@pytest.fixture(scope="module")
def neural_network(tmp_path_factory):
    builder = NeuralNetworkBuilder([("x", Array(3))], [("y", Array(3))])
    builder.add_activation("a", "RELU", "x", "y")
    path = tmp_path_factory.mktemp("network") / "relu.mlmodel"
    ct.models.MLModel(builder.spec, skip_model_load=True).save(str(path))
    return path


def test_what_to_executorch_returns_is_accepted():
    x = torch.from_numpy(X)
    lowered = to_edge_transform_and_lower(export(torch.nn.ReLU(), (x,)), partitioner=[CoreMLPartitioner()])
    manager = lowered.to_executorch()
    assert torch.equal(host.run(manager, x - 1)[0], torch.relu(x - 1))
    assert torch.equal(host.load(manager).run([x - 1])[0], torch.relu(x - 1))


def test_scattered_bytes_are_accepted():
    case = pte_models.two_outputs()
    scattered = memoryview(bytearray(b for byte in case.pte for b in (byte, 0)))[::2]
    want = host.run(case.pte, *case.inputs)
    torch.testing.assert_close(host.run(scattered, *case.inputs), want, rtol=0, atol=0)
    torch.testing.assert_close(host.load(scattered).run(list(case.inputs)), want, rtol=0, atol=0)


@both
@pytest.mark.parametrize(
    ("given", "named"),
    [
        (None, "got None"),
        ([b"ET12"], "of type list"),
        (3, "of type int"),
        (np.zeros(4, np.uint8), "of type ndarray"),
        (torch.nn.Linear(1, 1), "of type Linear"),
        (io.BytesIO(b"ET12"), r"of type BytesIO \(give its \.getvalue\(\)\)"),
        (ct.proto.MIL_pb2.Program(), r"of type Program \(give the specification of a model, and its weights_dir"),
        (ct.models.MLModel, "the class MLModel"),
        ("", "the path is empty"),
    ],
)
def test_other_objects_are_refused_with_what_is_accepted(call, given, named):
    with pytest.raises(host.InputError, match=f"{named}.*; {ACCEPTED[call]}"):
        CALLS[call](given)


def test_a_specification_is_loaded_with_its_weights():
    weight = np.arange(64, dtype=np.float32)
    x = {"x": np.linspace(-1, 1, 64, dtype=np.float32)}
    model = convert(lambda x: mb.mul(x=x, y=weight, name="y"), x)
    spec, expected = model.get_spec(), host.load(model).predict(x)
    found = host.load(spec, weights_dir=model.weights_dir).predict(x)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    with pytest.raises(host.ProgramFormatError, match="the model has no weights directory"):
        host.load(spec).predict(x)
    with pytest.raises(host.ProgramFormatError, match="not an ML Program: the model is of type unknown"):
        host.load(ct.proto.Model_pb2.Model())
    with pytest.raises(host.InputError, match="weights_dir belongs to a specification"):
        host.load(model, weights_dir=model.weights_dir)


def test_models_are_sent_from_run_to_load(model):
    with pytest.raises(host.InputError, match=r"of type MLModel \(give an MLModel to host\.load\(\.\.\.\)\.predict\)"):
        host.run(model, torch.zeros(3))
    with pytest.raises(host.InputError, match=r"of type Program \(it is loaded already"):
        host.run(host.load(model), torch.zeros(3))


@both
@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("a\0b", "cannot be a path: embedded null"),
        ("a\ud800", "cannot be a path"),
        ("x" * 5000, r"'x{400}\.\.\. \(5000 characters\)': File name too long"),
    ],
)
def test_impossible_paths_are_refused(call, path, problem):
    for given in (path, Path(path)):
        with pytest.raises(host.ProgramFormatError, match=f"{problem}.*; {ACCEPTED[call]}"):
            CALLS[call](given)


def test_directories_are_named_with_what_takes_them(package, tmp_path):
    with pytest.raises(host.ProgramFormatError, match=r"is a package; .* use host\.load\('.*double\.mlpackage'\)\.pre"):
        host.run(package, torch.zeros(3))
    with pytest.raises(host.ProgramFormatError, match=r"is a directory; give the bytes of a \.pte"):
        host.run(tmp_path, torch.zeros(3))
    with pytest.raises(host.ProgramFormatError, match=r"no Manifest\.json; give the \.mlpackage folder itself"):
        host.load(tmp_path)


@both
def test_bare_specifications_are_named(call, package, neural_network):
    with pytest.raises(host.ProgramFormatError, match=r"relu\.mlmodel: not an ML Program: .* neuralNetwork"):
        CALLS[call](neural_network)
    with pytest.raises(host.ProgramFormatError, match=r"^not an ML Program: .* neuralNetwork"):
        CALLS[call](neural_network.read_bytes())
    (inner,) = package.rglob("*.mlmodel")
    with pytest.raises(host.ProgramFormatError, match=r"model\.mlmodel: .* bare spec.* give the \.mlpackage folder"):
        CALLS[call](inner)


@both
@pytest.mark.parametrize("data", [b"", b"hello there, world", bytes(4) + b"ET12" + bytes(30)])
def test_format_errors_name_the_file_once_and_a_remedy(call, data, tmp_path):
    path = tmp_path / "given.pte"
    path.write_bytes(data)
    with pytest.raises(host.ProgramFormatError, match=r"; (give|write it again)") as caught:
        CALLS[call](path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.count(str(path)) == 1
    assert message.count("not a delegate blob") <= 1
