import subprocess
import sys
from typing import Any

import coremltools as ct
import pytest
import torch
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

import partitioner.host.ops  # noqa: F401
from partitioner import host
from partitioner.host.mil.model import Opset
from partitioner.host.registry import OPS, Ints, OpRegistry, Outputs, Tensors, make_definition, register_op

# Constants are values, not computations; the symbolic one never leaves the converter.
NOT_COMPUTED = {"const", "_const_symbolic"}
OPSETS = {ct.target.iOS15: Opset.IOS15, ct.target.iOS16: Opset.IOS16, ct.target.iOS17: Opset.IOS17}
OPSETS |= {ct.target.iOS18: Opset.IOS18}
VERSIONS = [
    (op_type, target) for op_type, versions in SSAOpRegistry.core_ops.items() for target in versions if target in OPSETS
]


def test_every_operation_that_core_ml_tools_emits_is_defined():
    assert set(SSAOpRegistry.core_ops) - OPS.types() == NOT_COMPUTED
    # Written instead of coreml_update_state.
    assert OPS.types() - set(SSAOpRegistry.core_ops) == {"write_state"}


def test_every_version_takes_the_parameters_that_core_ml_tools_gives_it():
    unknown = {}
    for op_type, target in VERSIONS:
        if op_type in NOT_COMPUTED:
            continue
        definition = OPS.find(op_type, OPSETS[target])
        spec = SSAOpRegistry.core_ops[op_type][target].input_spec.input_types
        given = {name for name in spec if not name.startswith("_")}
        if definition is None or not given <= definition.params.keys():
            unknown[op_type, target.name] = given - (definition.params.keys() if definition else set())
    assert unknown == {}


def test_the_newest_definition_not_above_the_opset_is_used():
    registry = OpRegistry()
    for since in (Opset.IOS16, Opset.IOS18):
        registry.add(make_definition("op", lambda: None, since=since, exact=True, pure=True))
    assert registry.find("op", Opset.IOS15) is None
    found = [registry.find("op", opset) for opset in (Opset.IOS16, Opset.IOS17, Opset.IOS18, Opset.IOS26)]
    assert [definition.since for definition in found] == [Opset.IOS16, Opset.IOS16, Opset.IOS18, Opset.IOS18]
    assert registry.find("other", Opset.IOS18) is None


def test_defining_an_operation_twice_raises():
    with pytest.raises(ValueError, match="operation 'relu' is already defined for IOS15"):

        @register_op("relu")
        def relu(x: torch.Tensor) -> torch.Tensor:
            return x


def test_signatures_say_how_parameters_arrive():
    def function(
        x: torch.Tensor,
        values: Tensors,
        outputs: Outputs,
        axes: Ints | None = None,
        alpha: float = 0.5,
        flag: bool = False,
        mode: str = "a",
        rest: Any = None,
    ) -> torch.Tensor:
        return x

    definition = make_definition("op", function, since=Opset.IOS15, exact=False, pure=True)
    assert definition.outputs_param == "outputs"
    assert [name for name, param in definition.params.items() if param.required] == ["x", "values"]
    assert [name for name, param in definition.params.items() if param.variadic] == ["values"]
    converted = {
        name: definition.params[name].convert(value)
        for name, value in (("axes", torch.tensor([1, -1])), ("alpha", torch.tensor(2)), ("flag", torch.tensor(1)))
    }
    assert converted == {"axes": (1, -1), "alpha": 2.0, "flag": True}


def test_other_annotations_are_refused():
    def function(x: complex) -> complex:
        return x

    with pytest.raises(TypeError, match=r"op: parameter 'x' has the annotation <class 'complex'>"):
        make_definition("op", function, since=Opset.IOS15, exact=False, pure=True)


IN_A_NEW_PROCESS = """
from partitioner import host
import torch

def relu(x: torch.Tensor) -> torch.Tensor:
    return x

for since in (host.Opset.IOS15, host.Opset.IOS17):
    try:
        host.register_op("my_relu", "relu", since=since)(relu)
    except ValueError as error:
        assert "operation 'relu' comes with the host" in str(error), error
    else:
        raise SystemExit(f"accepted for {since}")
from partitioner.host.registry import OPS
assert OPS.find("relu", host.Opset.IOS26).function is not relu
assert OPS.find("my_relu", host.Opset.IOS26) is None
host.register_op("my_relu")(relu)
"""


def test_operations_of_the_host_are_not_replaced_even_by_the_first_call():
    done = subprocess.run([sys.executable, "-c", IN_A_NEW_PROCESS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_operations_of_users_have_a_definition_an_opset_and_a_name():
    def same(x: torch.Tensor) -> torch.Tensor:
        return x

    for since in (Opset.IOS15, Opset.IOS17):
        host.register_op("of_a_user", since=since)(same)
    try:
        with pytest.raises(ValueError, match="'of_a_user' is already defined for IOS17"):
            host.register_op("another", "of_a_user", since=Opset.IOS17)(same)
        with pytest.raises(ValueError, match="name the operations"):
            host.register_op(same)
        with pytest.raises(TypeError, match="annotation"):
            host.register_op("another")(lambda x: x)
        assert "another" not in OPS.types()
    finally:
        for since in (Opset.IOS15, Opset.IOS17):
            OPS.remove("of_a_user", since)
