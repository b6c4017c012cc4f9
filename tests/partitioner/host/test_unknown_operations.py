"""Operations that the host does not define."""

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from helpers.mil import convert
from helpers.packages import X

from partitioner import host
from partitioner.host.registry import OPS


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
