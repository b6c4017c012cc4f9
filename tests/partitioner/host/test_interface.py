"""What a program takes and returns."""

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from helpers.mil import convert
from helpers.packages import WEIGHT, X

from partitioner import host


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


def test_integers_must_fit_and_fractions_are_refused():
    program = host.load(convert(lambda x: mb.add(x=x, y=np.int32(1), name="y"), {"x": np.array([1, 2], np.int32)}))
    np.testing.assert_array_equal(program.predict({"x": np.array([1, 2], np.int64)})["y"], [2, 3])
    with pytest.raises(host.InputError, match="do not fit the declared type int32"):
        program.predict({"x": np.array([1, 2**40])})
    with pytest.raises(host.InputError, match=r"got torch.float32, expected int32"):
        program.predict({"x": np.array([1.0, 2.0], np.float32)})


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


def test_an_output_that_is_described_twice_is_one():
    model = convert(lambda x: mb.relu(x=x, name="y"), {"x": X})
    spec = model.get_spec()
    again = spec.description.output.add()
    again.CopyFrom(spec.description.output[0])
    program = host.load(ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True))
    assert [feature.name for feature in program.outputs] == ["y"]
    np.testing.assert_array_equal(program.predict({"x": -X})["y"], np.zeros_like(X))

    again.type.multiArrayType.dataType = spec.description.output[0].type.multiArrayType.INT32
    with pytest.raises(host.ProgramFormatError, match="'y' is described twice, and differently"):
        host.load(ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True))
