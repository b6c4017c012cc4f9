import contextlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import get_new_symbol
from coremltools.models.datatypes import Array
from coremltools.models.neural_network import NeuralNetworkBuilder
from host.mil import convert
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partitioner import host
from partitioner.blob import write_blob
from partitioner.host.registry import OPS

WEIGHT = np.arange(32, dtype=np.float32).reshape(4, 8) / 8
X = np.arange(8, dtype=np.float32)[None]


def _model() -> ct.models.MLModel:
    return convert(lambda x: mb.linear(x=x, weight=WEIGHT, name="y"), {"x": X})


def _flexible(shape):
    @mb.program(input_specs=[mb.TensorSpec(shape)], opset_version=ct.target.iOS16)
    def program(x):
        return mb.linear(x=x, weight=WEIGHT, name="y")

    return program


def _files(package) -> dict[str, bytes]:
    return {
        f"model.mlpackage/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "model.mlpackage"
    _model().save(str(path))
    return path


@pytest.fixture(scope="module")
def blob_files(package):
    return {"metadata.json": json.dumps({"inputNames": ["x"], "outputNames": ["y"]}).encode(), **_files(package)}


def test_every_source_gives_the_same_program(package, blob_files, tmp_path):
    blob = write_blob(blob_files)
    (tmp_path / "blob").write_bytes(blob)
    for source in (_model(), package, str(package), blob, memoryview(blob), tmp_path / "blob"):
        program = host.load(source)
        assert [(feature.name, feature.shape) for feature in program.inputs] == [("x", (1, 8))]
        np.testing.assert_array_equal(program.predict({"x": X})["y"], X @ WEIGHT.T)
        (output,) = program.run([torch.from_numpy(X)])
        np.testing.assert_array_equal(output.numpy(), X @ WEIGHT.T)


def test_positional_order_is_the_one_of_the_blob():
    inputs = {"a": X, "b": 2 * X}
    model = convert(lambda a, b: [mb.sub(x=a, y=b, name="c"), mb.add(x=a, y=b, name="d")], inputs)
    files = _files_of(model)
    metadata = {"inputNames": ["b", "a"], "outputNames": ["d", "c"]}
    program = host.load(write_blob({"metadata.json": json.dumps(metadata).encode(), **files}))
    d, c = program.run([torch.from_numpy(2 * X), torch.from_numpy(X)])
    np.testing.assert_array_equal(d.numpy(), 3 * X)
    np.testing.assert_array_equal(c.numpy(), -X)


def _files_of(model):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.mlpackage"
        model.save(str(path))
        return _files(path)


def test_interface_types_are_the_declared_ones():
    inputs = {"x": X.astype(np.float16)}
    program = host.load(convert(lambda x: mb.cast(x=mb.sqrt(x=x), dtype="int32"), inputs, ios=16))
    assert program.inputs[0].dtype.name == "fp16"
    assert program.run([torch.from_numpy(inputs["x"])])[0].dtype == torch.int32
    program = host.load(convert(lambda x: mb.sqrt(x=x, name="y"), inputs, ios=16), policy="float32")
    assert program.predict(inputs)["y"].dtype == np.float16


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, r"missing \['x'\]"),
        ({"x": X, "z": X}, r"unknown \['z'\].*takes \['x'\]"),
        ({"x": X[0]}, r"'x': got shape \(8,\), expected \(1, 8\)"),
        ({"x": np.zeros((1, 9), np.float32)}, r"got shape \(1, 9\), expected \(1, 8\)"),
        ({"x": X.astype(np.complex64)}, r"got torch.complex64, expected fp32"),
        ({"x": np.array([["a"] * 8])}, "cannot read"),
    ],
)
def test_wrong_inputs_are_named(package, data, message):
    with pytest.raises(host.InputError, match=message):
        host.load(package).predict(data)


def test_a_list_of_inputs_gives_a_list_of_results(package):
    program = host.load(package)
    results = program.predict([{"x": X}, {"x": -X}])
    assert [list(result) for result in results] == [["y"], ["y"]]
    np.testing.assert_array_equal(results[0]["y"], X @ WEIGHT.T)
    np.testing.assert_array_equal(results[1]["y"], -X @ WEIGHT.T)
    assert program.predict([]) == []
    with pytest.raises(host.InputError, match="a state serves one prediction at a time"):
        program.predict([{"x": X}], program.make_state())


@pytest.mark.parametrize("data", [None, X, torch.from_numpy(X), "x", [X], [{"x": X}, None]])
def test_data_that_is_no_dictionary_is_refused(package, data):
    with pytest.raises(host.InputError, match=r"give a dictionary \{'x': \.\.\.\}, or a list of such dictionaries"):
        host.load(package).predict(data)


@pytest.mark.parametrize("inputs", [None, torch.from_numpy(X), X, {"x": X}])
def test_positional_inputs_must_be_a_list(package, inputs):
    with pytest.raises(host.InputError, match="give a list of tensors, one for each input"):
        host.load(package).run(inputs)


def test_wrong_positional_inputs_are_named(package):
    program = host.load(package)
    with pytest.raises(host.InputError, match=r"got 0 inputs, expected 1 in the order \['x'\]"):
        program.run([])
    with pytest.raises(host.InputError, match=r"no function 'f'; pass function= one of \['main'\]"):
        program.run([torch.from_numpy(X)], function="f")


def test_flexible_shapes_are_checked_against_their_ranges():
    shape = ct.Shape((ct.RangeDim(2, 4, 2), 8))
    program = _flexible((get_new_symbol(), 8))
    model = ct.convert(
        program,
        inputs=[ct.TensorType("x", shape=shape)],
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    loaded = host.load(model)
    for rows in (2, 4):
        x = np.ones((rows, 8), np.float32)
        assert loaded.predict({"x": x})["y"].shape == (rows, 4)
    for rows in (1, 5):
        message = (
            rf"got shape \({rows}, 8\), expected \(2..4, 8\): Size \({rows}\) of dimension \(0\) is not in allowed"
        )
        with pytest.raises(host.InputError, match=message):
            loaded.predict({"x": np.ones((rows, 8), np.float32)})


def test_enumerated_shapes_are_the_only_ones():
    shapes = ct.EnumeratedShapes([(2, 8), (6, 8)], default=(6, 8))
    model = ct.convert(
        _flexible((get_new_symbol(), 8)),
        inputs=[ct.TensorType("x", shape=shapes)],
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    loaded = host.load(model)
    assert loaded.inputs[0].default_shape == (6, 8)
    for rows in (2, 6):
        assert loaded.predict({"x": np.ones((rows, 8), np.float32)})["y"].shape == (rows, 4)
    with pytest.raises(host.InputError, match=r"Shape \(4 x 8\) was not in enumerated set of allowed shapes \[\("):
        loaded.predict({"x": np.ones((4, 8), np.float32)})


def test_optional_inputs_take_their_default():
    model = convert(lambda x, y: mb.add(x=x, y=y, name="z"), {"x": X, "y": X})
    spec = model.get_spec()
    described = next(entry for entry in spec.description.input if entry.name == "y")
    described.type.isOptional = True
    described.type.multiArrayType.floatDefaultValue = 2.5
    optional = ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)
    np.testing.assert_array_equal(host.load(optional).predict({"x": X})["z"], X + 2.5)


def test_integers_must_fit_and_fractions_are_refused():
    program = host.load(convert(lambda x: mb.add(x=x, y=np.int32(1), name="y"), {"x": np.array([1, 2], np.int32)}))
    np.testing.assert_array_equal(program.predict({"x": np.array([1, 2], np.int64)})["y"], [2, 3])
    with pytest.raises(host.InputError, match="do not fit the declared type int32"):
        program.predict({"x": np.array([1, 2**40])})
    with pytest.raises(host.InputError, match=r"got torch.float32, expected int32"):
        program.predict({"x": np.array([1.0, 2.0], np.float32)})


def test_outputs_never_share_memory_with_inputs_or_constants():
    constant = np.full((1, 8), 3.0, np.float32)
    program = host.load(
        convert(lambda x: [mb.identity(x=x, name="same"), mb.add(x=constant, y=0.0, name="c")], {"x": X})
    )
    given = torch.from_numpy(X.copy())
    for _ in range(2):
        same, fixed = program.run([given])
        assert fixed.tolist() == constant.tolist()
        same.fill_(7)
        fixed.fill_(7)
    assert given.tolist() == X.tolist()


def test_runs_in_threads_agree():
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)

    def build(x):
        for _ in range(20):
            x = mb.tanh(x=mb.linear(x=x, weight=weight))
        return x

    program = host.load(convert(build, {"x": np.zeros((1, 64), np.float32)}))
    inputs = [torch.full((1, 64), float(index)) for index in range(32)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda x: program.run([x])[0], inputs))
    for x, result in zip(inputs, together, strict=True):
        assert torch.equal(program.run([x])[0], result)


def test_programs_in_threads_do_not_disturb_each_other():
    x = np.linspace(-2, 2, 64, dtype=np.float32)[None]
    weight = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32) / 8
    builds = [
        lambda x: mb.softmax(x=mb.linear(x=x, weight=weight)),
        lambda x: mb.quantize(input=x, scale=np.float32(0.1), zero_point=np.int8(0), output_dtype="int8"),
    ]
    loaded = [host.load(convert(lambda x, build=build: mb.identity(x=build(x)), {"x": x})) for build in builds[:1]]
    loaded.append(host.load(convert(lambda x: mb.dequantize(input=builds[1](x), scale=np.float32(0.1)), {"x": x})))
    tensor = torch.from_numpy(x)
    alone = [program.run([tensor])[0] for program in loaded]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda index: loaded[index % 2].run([tensor])[0], range(64)))
    for index, result in enumerate(together):
        assert torch.equal(result, alone[index % 2])


def test_scalars_are_arrays_of_one_element_at_the_boundary():
    x = np.array([3.0, 1.0, 2.0], np.float32)

    def build(x):
        return mb.gather(x=x, indices=np.int32(1), axis=0, name="one"), mb.reduce_sum(x=x, name="sum")

    program = host.load(convert(build, {"x": x}))
    result = program.predict({"x": x})
    assert {name: (value.shape, value.tolist()) for name, value in result.items()} == {
        "one": ((1,), [1.0]),
        "sum": ((1,), [6.0]),
    }
    assert [tuple(value.shape) for value in program.run([torch.from_numpy(x)])] == [(), ()]


def test_values_die_after_their_last_use():
    def build(x):
        for _ in range(4):
            x = mb.exp(x=x)
        return x

    program = host.load(convert(build, {"x": X}))
    program.predict({"x": -X})
    steps = program._plans["main", True][0].body.steps
    assert [step.frees for step in steps] == [(), *[(step.outputs[0],) for step in steps[:-1]]]


def test_unknown_operations_are_all_listed_and_can_be_defined():
    def build(x):
        return mb.sinh(x=mb.cosh(x=x), name="y")

    model = convert(build, {"x": X})
    spec = model.get_spec()
    for operation in spec.mlProgram.functions["main"].block_specializations["CoreML7"].operations:
        if operation.type in ("cosh", "sinh"):
            operation.type = f"my_{operation.type}"
    custom = ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)
    with pytest.raises(host.UnsupportedMilOpError, match=r"my_cosh \(IOS17\), my_sinh \(IOS17\)") as caught:
        host.load(custom)
    assert caught.value.missing == ("my_cosh (IOS17)", "my_sinh (IOS17)")

    @host.register_op("my_cosh", "my_sinh", since=host.Opset.IOS17)
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    try:
        np.testing.assert_array_equal(host.load(custom).predict({"x": X})["y"], 4 * X)
    finally:
        for name in ("my_cosh", "my_sinh"):
            OPS.remove(name, host.Opset.IOS17)


def test_each_unknown_operation_is_listed_once():
    def build(x):
        return mb.add(x=mb.sinh(x=mb.cosh(x=x)), y=mb.cosh(x=mb.sin(x=x)), name="y")

    model = convert(build, {"x": X})
    spec = model.get_spec()
    renamed = {"cosh": "twice", "sinh": "once"}
    operations = spec.mlProgram.functions["main"].block_specializations["CoreML7"].operations
    for operation in operations:
        operation.type = renamed.get(operation.type, operation.type)
    assert sorted(operation.type for operation in operations if operation.type in renamed.values()) == [
        "once",
        "twice",
        "twice",
    ]
    with pytest.raises(host.UnsupportedMilOpError) as caught:
        host.load(ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True))
    assert caught.value.missing == ("once (IOS17)", "twice (IOS17)")
    assert "uses 2 operation(s) that" in str(caught.value)


def test_failures_name_the_operation():
    index = np.array([9], np.int32)
    program = host.load(convert(lambda x, i: mb.gather(x=x, indices=i, axis=1, name="g"), {"x": X, "i": index}))
    with pytest.raises(host.ExecutionError, match=r"gather 'g' failed on \(indices: int32\[1\], x: float32\[1, 8\]\)"):
        program.predict({"x": X, "i": index})


def test_neural_networks_are_refused():
    builder = NeuralNetworkBuilder([("x", Array(3))], [("y", Array(3))])
    builder.add_activation("a", "RELU", "x", "y")
    model = ct.models.MLModel(builder.spec)
    with pytest.raises(host.ProgramFormatError, match="not an ML Program: the model is of type neuralNetwork"):
        host.load(model)


@pytest.mark.parametrize("escape", ["../weights/weight.bin", "/etc/passwd", "weights/../../secret"])
def test_paths_out_of_the_package_are_refused(blob_files, escape):
    spec = _model().get_spec()
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


def test_other_bytes_are_refused(tmp_path):
    for data in (b"", b"ET12", b"hello", bytes(100)):
        with pytest.raises(host.ProgramFormatError, match=r"not a \.pte program, and not a delegate blob"):
            host.load(data)
    with pytest.raises(host.ProgramFormatError, match=r"there is no file '.*missing'; check the path"):
        host.load(tmp_path / "missing")


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


def test_policies_are_named_and_differ():
    x = np.array([[1.0, 2049.0]], np.float32)

    def build(x):
        return mb.cast(x=mb.add(x=mb.cast(x=x, dtype="fp16"), y=np.float16(0.0001)), dtype="fp32", name="y")

    model = convert(build, {"x": x})
    assert host.load(model).policy.name == "storage16"
    np.testing.assert_array_equal(host.load(model).predict({"x": x})["y"], [[1.0, 2048.0]])
    exact = x + np.float32(np.float16(0.0001))
    np.testing.assert_array_equal(host.load(model, policy="float32").predict({"x": x})["y"], exact)


@pytest.mark.parametrize("policy", ["exact", "float64", "", None, 16, ["float32"]])
def test_unknown_policies_are_refused(package, policy):
    with pytest.raises(host.PolicyError, match=r"choose one of \['float32', 'sequential16', 'storage16'\]") as caught:
        host.load(package, policy=policy)
    assert isinstance(caught.value, host.HostError)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(host.PolicyError, match="unknown precision policy"):
        host.enable(policy)
    with pytest.raises(host.PolicyError, match="unknown precision policy"), host.patch_coremltools(policy):
        pass


def test_importing_the_host_runtime_is_light():
    heavy = ("coremltools", "executorch")
    code = f"import sys; from partitioner import host; host.load; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    assert result.stderr == ""


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
