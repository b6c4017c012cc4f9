"""The report of a lowering names every operation's fate, and adds up."""

import json

import coremltools as ct
import pytest
import torch
from helpers.lowering import Function
from helpers.lowering import lower as lower_to_edge
from torch import nn
from torchao.prototype.quantization.codebook_coreml import CodebookWeightOnlyConfig
from torchao.quantization.granularity import PerAxis
from torchao.quantization.quant_api import IntxWeightOnlyConfig, quantize_

from partitioner import CoreMLBackend, CoreMLPartitioner, lower

X = torch.linspace(-1, 1, 32).reshape(4, 8)


def test_what_stays_outside_is_explained() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), Function(torch.asinh), nn.Linear(16, 4)).eval()
    partitioner = CoreMLPartitioner()
    lower_to_edge(model, (X,), partitioner=partitioner)
    (report,) = partitioner.report()
    assert report.partitions == 2
    row = report.rows[0]
    assert (row.op, row.count, row.delegated) == ("aten.asinh.default", 1, False)
    assert "no such operation" in str(row.reason)
    assert "File " in str(row.source)
    # 4 x 8 x 16 and 4 x 16 x 4 multiplications, and 4 x 16 results outside.
    assert report.compute_share == pytest.approx(1 - 64 / (512 + 256 + 64))
    divided = "2 delegate calls: these operators stay outside Core ML and divide the rest: 1x aten.asinh.default"
    assert divided in str(report)
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["op"] == "aten.asinh.default"


def test_a_skipped_operation_has_a_remedy() -> None:
    partitioner = CoreMLPartitioner(skip_ops_for_coreml_delegation=["aten.relu.default"])
    lower_to_edge(nn.Sequential(nn.Linear(8, 4), nn.ReLU()).eval(), (X,), partitioner=partitioner)
    (report,) = partitioner.report()
    assert report.rows[0].remedy == "take it off skip_ops_for_coreml_delegation"


def test_the_chosen_target_is_explained_and_a_given_one_is_not() -> None:
    program = torch.export.export(Function(torch.relu), (X.half(),))
    (report,) = lower(program).report
    assert report.target == "iOS16"
    assert report.target_reasons == ("float16 inputs: input 'inputs_0'",)
    assert "deployment target: iOS16 (float16 inputs" in str(report)
    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS17)
    (given,) = lower(program, compile_specs=specs).report
    assert (given.target, given.target_reasons) == ("iOS17", ())


def test_a_whole_program_is_one_call() -> None:
    (report,) = lower(torch.export.export(Function(torch.relu), (X,))).report
    assert report.partitions == 1
    assert report.compute_share == 1.0
    assert str(report).startswith("1 delegate call: Core ML takes every operation\n100.0 %")


def test_a_new_lowering_starts_a_new_report() -> None:
    partitioner = CoreMLPartitioner()
    for _ in range(2):
        lower_to_edge(Function(torch.relu), (X,), partitioner=partitioner)
    assert len(partitioner.report()) == 1


@pytest.mark.parametrize(
    ("config", "note"),
    [
        (IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerAxis(0)), None),
        (IntxWeightOnlyConfig(weight_dtype=torch.int5, granularity=PerAxis(0)), "weights declared in 5 bits"),
        (CodebookWeightOnlyConfig(dtype=torch.uint6, block_size=[-1, -1]), None),
        (
            CodebookWeightOnlyConfig(dtype=torch.uint7, block_size=[-1, -1]),
            "indices of lookup tables declared in 7 bits",
        ),
    ],
)
def test_weights_that_are_stored_in_more_bits_are_reported(config, note: str | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16)).eval()
    quantize_(model, config)
    (report,) = lower(torch.export.export(model, (X,))).report
    expected = () if note is None else (f"{note} are stored in 8, the next size of Core ML (2x)",)
    assert report.notes == expected
