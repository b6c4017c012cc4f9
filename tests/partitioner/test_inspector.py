"""ExecuTorch's Inspector joins what a run logged with the operations of the model, by ETRecord and debug handles."""

from pathlib import Path

import coremltools as ct
import pytest
import torch
from executorch.devtools import Inspector, parse_etrecord
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import nn

from partitioner import CoreMLBackend, CoreMLPartitioner, host

pytest.importorskip("partitioner.host._delegate")
X = torch.linspace(-1, 1, 16).reshape(2, 8)


@pytest.fixture
def single_precision():
    host.enable(policy="float32")
    yield
    host.enable()


def record_and_dump(folder: Path, precision: ct.precision) -> Inspector:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4), nn.Softmax(-1)).eval()
    specs = CoreMLBackend.generate_compile_specs(compute_precision=precision)
    program = to_edge_transform_and_lower(
        torch.export.export(model, (X,)),
        partitioner=[CoreMLPartitioner(compile_specs=specs)],
        generate_etrecord=True,
    ).to_executorch()
    record = program.get_etrecord()
    record.update_representative_inputs([[X]])
    paths = {name: str(folder / name) for name in ("record", "dump", "values")}
    record.save(paths["record"])
    loaded = Runtime.get().load_program(program.buffer, enable_etdump=True, debug_buffer_size=1 << 20)
    loaded.load_method("forward").execute((X,))
    loaded.write_etdump_result_to_file(paths["dump"], paths["values"])
    return Inspector(
        etdump_path=paths["dump"], etrecord=parse_etrecord(paths["record"]), debug_buffer_path=paths["values"]
    )


@pytest.mark.usefixtures("single_precision")
def test_events_know_their_operations_and_how_far_they_are_from_the_model(tmp_path: Path) -> None:
    inspector = record_and_dump(tmp_path, ct.precision.FLOAT32)
    events = [event for block in inspector.event_blocks for event in block.events if event.is_delegated_op]
    kinds = [event.op_types for event in events]
    assert kinds == [[f"aten.{name}"] for name in ("linear.default", "gelu.default", "linear.default", "softmax.int")]
    assert all("in forward" in next(iter(event.stack_traces.values())) for event in events)
    gaps = inspector.calculate_numeric_gap("MSE")
    assert list(gaps["aot_ops"]) == [["linear"], ["gelu"], ["linear_1"], ["softmax"]]
    assert max(max(gap) for gap in gaps["gap"]) < 1e-10


@pytest.mark.slow
def test_results_of_half_precision_are_compared_and_casts_on_the_way_are_not(tmp_path: Path) -> None:
    host.enable()
    gaps = record_and_dump(tmp_path, ct.precision.FLOAT16).calculate_numeric_gap("MSE")
    assert list(gaps["aot_ops"]) == [["linear"], ["gelu"], ["linear_1"], ["softmax"]]
    # Rounding to 11 bits of values around 1.
    assert 0 < max(max(gap) for gap in gaps["gap"]) < 2**-20
