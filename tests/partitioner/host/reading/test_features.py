"""Inputs whose shape or presence is up to the caller."""

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import get_new_symbol
from helpers.mil import convert
from helpers.packages import WEIGHT, X

from partitioner import host


def _flexible(shape):
    @mb.program(input_specs=[mb.TensorSpec(shape)], opset_version=ct.target.iOS16)
    def program(x):
        return mb.linear(x=x, weight=WEIGHT, name="y")

    return program


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
