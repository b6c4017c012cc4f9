"""The deployment target: the lowest that the program needs, by whom it is asked for, and the types that it stores."""

import coremltools as ct
import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from helpers.lowering import DTYPE_NAMES, Function, operations, target
from helpers.lowering import lower as lower_to_edge
from helpers.minimal_quantizer import quantized
from torch import nn
from torchao.prototype.quantization.codebook_coreml import CodebookWeightOnlyConfig
from torchao.quantization.granularity import PerGroup
from torchao.quantization.quant_api import IntxWeightOnlyConfig, quantize_

from partitioner import CoreMLBackend, CoreMLPartitioner, lower
from partitioner.errors import DeploymentTargetError
from partitioner.support.requirements import ENTRY_KEY

X = (torch.linspace(-1, 1, 64).reshape(2, 32),)


def annotated(**options) -> torch.export.ExportedProgram:
    """A quantized program in which a quantizer left the entries of its configuration."""
    torch.manual_seed(0)
    model = quantized(nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8)).eval(), X, **options)
    linears = [node for node in model.graph.nodes if "linear" in str(node.target)]
    for node, entry in zip(linears, ("module_name 0", "global"), strict=True):
        node.meta["custom"] = {ENTRY_KEY: entry}
    return torch.export.export(model, X)


def specs(minimum: ct.target) -> list:
    return CoreMLBackend.generate_compile_specs(minimum_deployment_target=minimum)


@pytest.mark.parametrize("direct", [True, False], ids=["lower", "edge"])
def test_a_low_target_is_refused_with_the_entries_that_ask_for_more(direct: bool) -> None:
    program = annotated()
    partitioner = CoreMLPartitioner(compile_specs=specs(ct.target.iOS15))
    with pytest.raises(DeploymentTargetError) as error:
        _ = (
            lower(program, partitioner=partitioner)
            if direct
            else to_edge_transform_and_lower(program, partitioner=[partitioner])
        )
    message = str(error.value)
    assert (
        "quantized weights need iOS16: quantized_decomposed.dequantize_per_channel.default (2x), "
        "asked for by module_name 0, global" in message
    )
    assert "quantized activations need iOS17: quantized_decomposed.quantize_per_tensor.default (" in message


def test_the_lowest_target_is_chosen_and_its_reasons_are_reported() -> None:
    lowered = lower(annotated(activation=None))
    (report,) = lowered.report
    assert report.target == "iOS16"
    assert report.target_reasons == (
        "quantized weights: quantized_decomposed.dequantize_per_channel.default, asked for by module_name 0, global",
    )
    assert "deployment target: iOS16 (quantized weights: " in str(report)
    (plain,) = lower(torch.export.export(nn.Linear(32, 4), X)).report
    assert (plain.target, plain.target_reasons) == (None, ())
    assert "deployment target: the oldest that runs ML programs" in str(plain)


NEW_OPERATIONS = {
    "pixel_unshuffle": (lambda x: nn.functional.pixel_unshuffle(x.reshape(1, 1, 8, 8), 2), "iOS16"),
    "unsorted topk": (lambda x: x.topk(3, sorted=False)[0], None),
}


@pytest.mark.parametrize(("function", "needed"), NEW_OPERATIONS.values(), ids=NEW_OPERATIONS.keys())
def test_operations_that_are_newer_than_the_target(function, needed: str | None) -> None:
    """A refusal comes before any conversion; what can be done another way needs no newer target."""
    program = torch.export.export(Function(function), X)
    if needed is None:
        assert lower(program, compile_specs=specs(ct.target.iOS15)).direct
    else:
        with pytest.raises(DeploymentTargetError, match=f"need {needed}: aten.pixel_unshuffle.default"):
            CoreMLPartitioner(compile_specs=specs(ct.target.iOS15)).transform_for_pre_decomposition(program)
        assert lower(program).report[0].target == needed


def stored(manager) -> set[str]:
    """Declared types of the integers and indices of compressed constants."""
    found = set()
    for operation in operations(manager):
        if operation.type.startswith("constexpr_"):
            values = [*operation.attributes.items()]
            values += [(name, given.arguments[0].value) for name, given in operation.inputs.items()]
            found |= {
                DTYPE_NAMES[value.type.tensorType.dataType]
                for name, value in values
                if name in ("data", "quantized_data", "indices")
            }
    return found


TYPES = [
    *[(IntxWeightOnlyConfig, {"weight_dtype": bits}, kind) for bits, kind in ((1, "INT4"), (4, "INT4"), (5, "INT8"))],
    *[(CodebookWeightOnlyConfig, {"dtype": bits}, f"UINT{kind}") for bits, kind in ((1, 1), (3, 3), (5, 6), (7, 8))],
]


@pytest.mark.slow
@pytest.mark.parametrize("minimum", [None, ct.target.iOS18])
@pytest.mark.parametrize(("config", "bits", "expected"), TYPES)
def test_the_stored_type_is_the_declared_one(config, bits: dict, expected: str, minimum) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16))
    with torch.no_grad():
        model[0].weight.copy_(torch.randint(0, 2, (16, 32)).float())  # few values, which are no reason for fewer bits
    (size,) = bits.values()
    if config is IntxWeightOnlyConfig:
        quantize_(model, config(weight_dtype=getattr(torch, f"int{size}"), granularity=PerGroup(16)))
    else:
        quantize_(model, config(dtype=getattr(torch, f"uint{size}"), block_size=[8, -1]))
    manager = lower_to_edge(model, X, minimum_deployment_target=minimum)
    assert stored(manager) == {expected}
    assert target(manager) == ct.target.iOS18
