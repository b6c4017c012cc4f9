"""`partitioner.lower`: the same numbers as ExecuTorch's way, and the same errors."""

import os
import subprocess
import sys
from pathlib import Path

import coremltools as ct
import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from helpers.lowering import CallCounter, Function
from helpers.lowering import lower as lower_to_edge
from helpers.models import build
from torch import Tensor, nn

from partitioner import CoreMLBackend, CoreMLPartitioner, host, lower
from partitioner.errors import DeploymentTargetError, UnsupportedOpError

X = torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)


def two_inputs(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    return {"sum": a + b.float(), "product": a * b.float()}


@pytest.mark.parametrize("name", ["bert", "vit", "resnet", "unet"])
def test_the_same_results_as_through_the_edge_dialect(name: str) -> None:
    model, inputs = build(name)
    program = torch.export.export(model, inputs)
    direct = lower(program)
    assert direct.direct
    assert direct.rejections == ()
    detour = to_edge_transform_and_lower(program, partitioner=[CoreMLPartitioner()]).to_executorch()
    for policy in ("float32", "storage16"):
        (ours,) = host.run(direct.buffer, *inputs, policy=policy)
        (theirs,) = host.run(detour.buffer, *inputs, policy=policy)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_several_inputs_and_outputs_keep_their_order() -> None:
    inputs = torch.linspace(-1, 1, 3), torch.arange(3)
    lowered = lower(torch.export.export(Function(two_inputs), inputs))
    assert lowered.direct
    results = host.run(lowered.buffer, *inputs)
    for expected, result in zip(two_inputs(*inputs).values(), results, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)


DETOURS = {
    "outside": (Function(lambda x: torch.acosh(x + 3) * 2), (X,)),
    "unused input": (Function(lambda x, y: x * 2), (X, X)),
    "input returned": (Function(lambda x: (x, x * 2)), (X,)),
    "one output twice": (Function(lambda x: (x * 2,) * 2), (X,)),
    "uint8 input": (Function(lambda x: x.float() * 2), (torch.arange(8, dtype=torch.uint8),)),
    "mutable buffer": (CallCounter(), (X,)),
}


@pytest.mark.parametrize(("model", "inputs"), DETOURS.values(), ids=DETOURS.keys())
def test_other_programs_take_the_long_way(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    program = torch.export.export(model, inputs)
    lowered = lower(program)
    assert not lowered.direct
    expected = lower_to_edge(model, inputs).to_executorch()
    for ours, theirs in zip(host.run(lowered.buffer, *inputs), host.run(expected.buffer, *inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_rejections_are_told() -> None:
    (rejection,) = lower(torch.export.export(*DETOURS["outside"])).rejections
    assert rejection.op == "aten.acosh.default"


def test_dynamic_shapes() -> None:
    batch = torch.export.Dim("batch", min=2, max=4)
    inputs = (torch.linspace(-1, 1, 12).reshape(2, 6),)
    lowered = lower(torch.export.export(Function(torch.relu), inputs, dynamic_shapes=[({0: batch},)]))
    for count in (2, 3):
        x = torch.linspace(-1, 1, 6 * count).reshape(count, 6)
        torch.testing.assert_close(host.run(lowered.buffer, x)[0], x.relu(), rtol=1e-3, atol=1e-3)


def test_several_methods() -> None:
    programs = {name: torch.export.export(Function(f), (X,)) for name, f in (("up", torch.exp), ("down", torch.neg))}
    lowered = lower(programs)
    torch.testing.assert_close(host.run(lowered.buffer, X, method="down")[0], -X, rtol=1e-3, atol=1e-3)


def test_refusals_are_those_of_the_partitioner() -> None:
    program = torch.export.export(*DETOURS["outside"])
    with pytest.raises(UnsupportedOpError, match="acosh"):
        lower(program, partitioner=CoreMLPartitioner(lower_full_graph=True))
    half = torch.export.export(Function(torch.relu), (X.half(),))
    with pytest.raises(DeploymentTargetError, match="float16 inputs need iOS16"):
        lower(half, compile_specs=CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS15))
    with pytest.raises(ValueError, match="give the compile specs to the partitioner"):
        lower(program, partitioner=CoreMLPartitioner(), compile_specs=[])


def test_saving_leaves_nothing_but_the_file(tmp_path: Path) -> None:
    lowered = lower(torch.export.export(Function(torch.relu), (X,)))
    lowered.save(tmp_path / "model.pte")
    assert (tmp_path / "model.pte").read_bytes() == lowered.buffer
    assert [path.name for path in tmp_path.iterdir()] == ["model.pte"]
    with pytest.raises(FileNotFoundError):
        lowered.save(tmp_path / "missing" / "model.pte")


@pytest.mark.slow
def test_equal_bytes_in_every_process(tmp_path: Path) -> None:
    script = (
        "import sys, torch; from torch import nn; from partitioner import lower; torch.manual_seed(0); "
        "model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval(); "
        "lower(torch.export.export(model, (torch.ones(1, 3, 8, 8),))).save(sys.argv[1])"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / seed)],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_skipped_operations_stay_outside() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    partitioner = CoreMLPartitioner(skip_ops_for_coreml_delegation=["aten.relu.default"])
    lowered = lower(torch.export.export(model, (torch.zeros(2, 8),)), partitioner=partitioner)
    assert not lowered.direct
    assert [rejection.op for rejection in lowered.rejections] == ["aten.relu.default"]


def test_integers_outside_int32_are_seen_on_the_direct_way_too() -> None:
    x = torch.arange(4)
    lowered = lower(torch.export.export(Function(lambda x: x * 3_000_000_000), (x,)))
    assert [rejection.op for rejection in lowered.rejections] == ["aten.mul.Tensor"]
    torch.testing.assert_close(host.run(lowered.buffer, x)[0], x * 3_000_000_000, rtol=0, atol=0)
