"""Compile specs are, key by key and byte by byte, those of ExecuTorch's backend."""

import inspect

import coremltools as ct
import pytest
import torch
from executorch.backends.apple.coreml.compiler.coreml_preprocess import (
    MULTIMETHOD_WEIGHT_SHARING_STRATEGY,
)
from executorch.backends.apple.coreml.compiler.coreml_preprocess import CoreMLBackend as Stock
from executorch.exir.backend.compile_spec_schema import CompileSpec

from partitioner import CoreMLBackend
from partitioner.errors import CompileSpecError
from partitioner.options.compile_specs import LoweringOptions, is_marked, parse, with_mark

QUANTIZER = {"mode": "linear_symmetric", "dtype": "int8", "granularity": "per_channel"}
PASSES = ["common::dead_code_elimination", "common::add_fp16_cast"]

# (writer, its argument, the reader of the same option)
OPTIONS = [
    *[("generate_compute_unit_compile_spec", unit, "compute_unit_from_compile_specs") for unit in ct.ComputeUnit],
    *[
        ("generate_minimum_deployment_target_compile_spec", target, "min_deployment_target_from_compile_specs")
        for target in (None, *ct.target)
    ],
    *[
        ("generate_compute_precision_compile_spec", precision, "model_compute_precision_from_compile_specs")
        for precision in ct.precision
    ],
    *[("generate_model_type_compile_spec", kind, "model_type_from_compile_specs") for kind in CoreMLBackend.MODEL_TYPE],
    *[
        (
            "generate_multimethod_weight_sharing_strategy_compile_spec",
            strategy,
            "multimethod_weight_sharing_strategy_from_compile_specs",
        )
        for strategy in MULTIMETHOD_WEIGHT_SHARING_STRATEGY
    ],
    ("generate_op_linear_quantizer_config_compile_spec", QUANTIZER, "op_linear_quantizer_config_from_compile_specs"),
    ("generate_pass_pipeline_compile_spec", PASSES, "pass_pipeline_from_compile_specs"),
]


def comparable(value: object) -> object:
    return value.passes if isinstance(value, ct.PassPipeline) else value


@pytest.mark.parametrize(("write", "value", "read"), OPTIONS, ids=[f"{row[0]}-{row[1]}" for row in OPTIONS])
def test_every_option_is_written_and_read_like_the_stock(write: str, value: object, read: str) -> None:
    ours = getattr(CoreMLBackend, write)(value)
    assert ours == getattr(Stock, write)(value)
    assert comparable(getattr(CoreMLBackend, read)([ours])) == comparable(getattr(Stock, read)([ours]))


@pytest.mark.parametrize("read", sorted({row[2] for row in OPTIONS} | {"enumerated_shapes_from_compile_specs"}))
def test_defaults_are_those_of_the_stock(read: str) -> None:
    assert comparable(getattr(CoreMLBackend, read)([])) == comparable(getattr(Stock, read)([]))


def test_every_spec_method_of_the_stock_exists_with_the_same_parameters() -> None:
    names = [name for name in vars(Stock) if name.startswith("generate_") or name.endswith("_from_compile_specs")]
    assert len(names) == 17
    for name in names:
        ours = inspect.signature(getattr(CoreMLBackend, name)).parameters.values()
        stock = inspect.signature(getattr(Stock, name)).parameters.values()
        assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in stock], name


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"compute_unit": ct.ComputeUnit.CPU_AND_NE, "minimum_deployment_target": ct.target.iOS17},
        {"compute_precision": ct.precision.FLOAT32, "model_type": CoreMLBackend.MODEL_TYPE.COMPILED_MODEL},
        {"op_linear_quantizer_config": QUANTIZER, "pass_names": PASSES},
    ],
)
def test_generate_compile_specs_equals_the_stock(arguments: dict) -> None:
    assert CoreMLBackend.generate_compile_specs(**arguments) == Stock.generate_compile_specs(**arguments)


class Add(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def dynamic_program() -> torch.export.ExportedProgram:
    shapes = {"x": {0: torch.export.Dim("n", min=2, max=16)}}
    return torch.export.export(Add(), (torch.zeros(4, 3),), dynamic_shapes=shapes)


def test_enumerated_shapes_equal_the_stock() -> None:
    program, shapes = dynamic_program(), {"x": [[2, 3], [8, 3]]}
    ours = CoreMLBackend.generate_enumerated_shapes_compile_spec(program, shapes)
    assert ours == Stock.generate_enumerated_shapes_compile_spec(program, shapes)
    assert CoreMLBackend.enumerated_shapes_from_compile_specs([ours]).emap.values()


@pytest.mark.parametrize("shapes", [{}, {"x": [[2, 3, 4]]}, {"x": [[99, 3]]}])
def test_shapes_that_do_not_fit_are_refused(shapes: dict) -> None:
    with pytest.raises(CompileSpecError, match="enumerated_shapes"):
        CoreMLBackend.generate_enumerated_shapes_compile_spec(dynamic_program(), shapes)


def test_parse_reads_everything_once() -> None:
    options = parse(
        CoreMLBackend.generate_compile_specs(
            compute_unit=ct.ComputeUnit.CPU_ONLY,
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT32,
        )
    )
    assert options == LoweringOptions(
        compute_unit=ct.ComputeUnit.CPU_ONLY,
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT32,
    )
    assert parse([]) == LoweringOptions()


def test_all_unreadable_specs_are_named_at_once() -> None:
    specs = [
        CompileSpec("compute_unit", b"all"),
        CompileSpec("model_type", b"neural"),
        CompileSpec("min_deployment_target", b"ios17"),
        CompileSpec("pass_pipeline", b"\xff"),
    ]
    with pytest.raises(CompileSpecError) as error:
        parse(specs)
    message = str(error.value)
    assert "unknown key 'compute_unit'" in message
    assert "'model_type'" in message
    assert "compiled_model" in message
    assert "'min_deployment_target'" in message
    assert "'pass_pipeline'" in message


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("compute_precision", "float16", "ct.precision.FLOAT16, ct.precision.FLOAT32"),
        ("compute_precision", CoreMLBackend.MODEL_TYPE.MODEL, "ct.precision.FLOAT16"),
        ("compute_precision", ct.ComputeUnit.ALL, "ct.precision.FLOAT16"),
        ("compute_unit", "all", "ct.ComputeUnit.ALL"),
        ("minimum_deployment_target", "iOS17", "ct.target.iOS17"),
        ("model_type", "model", "CoreMLBackend.MODEL_TYPE.MODEL"),
        ("op_linear_quantizer_config", "int8", "a dict of the arguments of"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_values_to_write_instead(
    name: str, value: object, allowed: str
) -> None:
    with pytest.raises(CompileSpecError) as error:
        CoreMLBackend.generate_compile_specs(**{name: value})
    assert f"{name}={value!r} cannot be stored; allowed: " in str(error.value)
    assert allowed in str(error.value)


def test_the_mark_survives_and_replaces_the_target() -> None:
    given = CoreMLBackend.generate_compile_specs(minimum_deployment_target=None)
    marked = with_mark(given, ct.target.iOS17)
    assert is_marked(marked)
    assert not is_marked(given)
    assert parse(marked) == LoweringOptions(minimum_deployment_target=ct.target.iOS17)
    assert with_mark(marked, ct.target.iOS17) == marked
