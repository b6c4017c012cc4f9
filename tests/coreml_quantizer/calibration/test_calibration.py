"""The calibration loop: what it takes, how it resumes, and several processes."""

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.graphs import WEIGHT_ONLY, prepare
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import CalibrationError, CoreMLQuantizer, calibrate
from coreml_quantizer.calibration.observing import observers_of
from coreml_quantizer.estimators import ESTIMATORS

from .calibrate_sharded import batches, prepared, qparams

EXACT = ("min_max", "histogram", "percentile", "entropy")


def reference(estimator: str) -> dict:
    graph = prepared(estimator)
    for batch in batches():
        graph(batch)
    return qparams(graph)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_loop_does_what_calling_the_model_does(estimator: str) -> None:
    graph = prepared(estimator)
    assert calibrate(graph, batches()) == 7
    assert qparams(graph) == reference(estimator)
    convert_pt2e(graph)


def test_batches_are_tensors_tuples_or_dicts() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.linear(x) + self.linear(y)

    found = []
    x, y = batches()[:2]
    for batch in ((x, y), [x, y], {"x": x, "y": y}):
        torch.manual_seed(0)
        graph = prepare(Sum(), (x, y))
        assert calibrate(graph, [batch]) == 1
        found.append(qparams(graph))
    graph = prepared("min_max")
    calibrate(graph, [(batch, torch.tensor(3)) for batch in batches()], inputs=lambda batch: batch[0])
    assert found[0] == found[1] == found[2]
    assert qparams(graph) == reference("min_max")


def test_no_more_than_max_batches_are_taken() -> None:
    taken = []

    def endless() -> Iterator[Tensor]:
        for batch in batches() * 100:
            taken.append(batch)
            yield batch

    graph = prepared("min_max")
    assert calibrate(graph, endless(), max_batches=3) == 3
    assert len(taken) == 3
    expected = prepared("min_max")
    for batch in batches()[:3]:
        expected(batch)
    assert qparams(graph) == qparams(expected)


class Interruption(Exception):
    pass


def interrupted(after: int) -> Iterator[Tensor]:
    yield from batches()[:after]
    raise Interruption


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_interrupted_calibration_resumes_exactly(estimator: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration"
    with pytest.raises(Interruption):
        calibrate(prepared(estimator), interrupted(5), checkpoint=path, checkpoint_every=2)
    assert [found.name for found in tmp_path.iterdir()] == ["calibration"], "nothing half written is left"
    taken = []
    graph = prepared(estimator)
    assert calibrate(graph, (taken.append(batch) or batch for batch in batches()), checkpoint=path) == 7
    assert len(taken) == 7, "the loader is advanced over the four batches that were done"
    assert qparams(graph) == reference(estimator)
    assert not list(tmp_path.iterdir()), "a finished calibration starts anew next time"


def test_what_a_checkpoint_covers_is_not_observed_again(tmp_path: Path) -> None:
    path = tmp_path / "calibration"
    with pytest.raises(Interruption):
        calibrate(prepared("min_max"), interrupted(4), checkpoint=path, checkpoint_every=4)
    graph = prepared("min_max")
    others = [torch.full((4, 6), 1e6)] * 4 + batches()[4:]
    calibrate(graph, others, checkpoint=path)
    assert qparams(graph) == reference("min_max")


@pytest.mark.parametrize("estimator", ["moving_average", "histogram", "mse"])
@pytest.mark.parametrize("every", [2, 10])
def test_the_same_graph_resumes_exactly(estimator: str, every: int, tmp_path: Path) -> None:
    path = tmp_path / "calibration"
    graph = prepared(estimator)
    with pytest.raises(Interruption):
        calibrate(graph, interrupted(5), checkpoint=path, checkpoint_every=every)
    assert path.exists() == (every == 2)
    assert calibrate(graph, batches(), checkpoint=path, checkpoint_every=every) == 7
    assert qparams(graph) == reference(estimator)


def test_checkpoints_that_cannot_be_written_are_refused_at_once(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "is a directory"), (tmp_path / "none" / "file", "has no directory")):
        graph = prepared("min_max")
        with pytest.raises(CalibrationError, match=message):
            calibrate(graph, batches(), checkpoint=path)
        with pytest.raises(CalibrationError, match="never observed"):
            qparams(graph)


def test_the_checkpoint_of_another_share_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration"
    with pytest.raises(Interruption):
        calibrate(prepared("min_max"), interrupted(4), checkpoint=path, checkpoint_every=1)
    with pytest.raises(CalibrationError, match=r"process 0 of 1.* share of one loader.*as many processes"):
        calibrate(prepared("min_max"), batches(), checkpoint=path, shard=True)


@pytest.mark.parametrize(
    ("batch", "described"),
    [((torch.zeros(4, 6), torch.zeros(4)), "a tuple of 2"), ({"y": torch.zeros(4, 6)}, "a dict of 1"), ("x", "a str")],
)
def test_a_batch_that_does_not_fit_is_named(batch: object, described: str) -> None:
    with pytest.raises(
        CalibrationError, match=rf"Batch 1, {described}, is not what the model takes.*\n.*inputs=lambda"
    ):
        calibrate(prepared("min_max"), [batches()[0], batch])


@pytest.mark.parametrize("damage", ["truncated", "text", "bit", "other model", "other data"])
def test_unfit_checkpoints_are_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration"
    with pytest.raises(Interruption):
        calibrate(prepared("min_max"), interrupted(4), checkpoint=path, checkpoint_every=1)
    saved = path.read_bytes()
    other = io.BytesIO()
    torch.save([1, 2], other)
    # One bit of the statistics, which torch.load would not notice.
    place = saved.index(b"max_val") if damage == "bit" else 0
    changed = saved[:place] + bytes([saved[place] ^ 1]) + saved[place + 1 :]
    damaged = {"truncated": saved[:-100], "text": b"hello", "other data": other.getvalue(), "bit": changed}
    path.write_bytes(damaged.get(damage, saved))
    estimator = "histogram" if damage == "other model" else "min_max"
    with pytest.raises(CalibrationError, match=r"calibration.*(Delete it|another path)"):
        calibrate(prepared(estimator), batches(), checkpoint=path)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_batch_that_makes_no_numbers_is_named_with_the_tensor(estimator: str) -> None:
    class Log(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.log()

    model = nn.Sequential(nn.Identity(), Log(), nn.Linear(6, 3))
    graph = prepare(model, (batches()[0],), {"default": {"activation": {"estimator": estimator}}})
    with pytest.raises(CalibrationError, match=r"Batch 1: 'log' in module '1' took not-a-number or infinite values"):
        calibrate(graph, [batches()[0].abs(), batches()[1]])


def test_an_empty_batch_is_named() -> None:
    with pytest.raises(CalibrationError, match=r"Batch 1: input 0 is empty: its shape is \(0, 6\)"):
        calibrate(prepared("min_max"), [batches()[0], torch.empty(0, 6)])


def test_no_batches_and_wrong_graphs_are_refused() -> None:
    with pytest.raises(CalibrationError, match="gave no batches"):
        calibrate(prepared("min_max"), [])
    with pytest.raises(CalibrationError, match="no observers of CoreMLQuantizer"):
        calibrate(torch.export.export(nn.ReLU(), (batches()[0],)).module(), batches())
    with pytest.raises(CalibrationError, match="no observers of CoreMLQuantizer"):
        calibrate(nn.ReLU(), batches())
    with pytest.raises(ValueError, match="max_batches=0"):
        calibrate(prepared("min_max"), batches(), max_batches=0)


def test_weight_only_models_need_no_batch() -> None:
    assert calibrate(prepare(nn.Linear(6, 3), (batches()[0],), WEIGHT_ONLY), []) == 0
    graph = prepare(nn.Linear(6, 3), (batches()[0],), {"default": None})
    assert calibrate(graph, batches()) == 0
    with pytest.raises(CalibrationError, match="no observers"):
        calibrate(convert_pt2e(prepare(nn.Linear(6, 3), (batches()[0],), WEIGHT_ONLY)), batches())


def test_nothing_is_printed_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    calibrate(prepared("min_max"), batches(), progress=True)
    assert capfd.readouterr() == ("", "")


def test_two_processes_end_like_one(tmp_path: Path) -> None:
    script = Path(__file__).with_name("calibrate_sharded.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, tmp_path]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    for estimator in ESTIMATORS:
        seen, found = first[estimator]
        assert seen == 7
        if estimator in EXACT:
            assert found == first[f"{estimator} in two calls"] == reference(estimator)
    assert first["mse"][1] == first["mse in two calls"]
    assert first["own loader"] == (7, reference("min_max"))
    kind, message = first["error"]
    assert kind == "CalibrationError"
    assert "process 1: Batch 1: " in message
    assert "different models" in first["different"]


def test_quantizers_are_plain_objects() -> None:
    graph = torch.export.export(nn.Linear(6, 3).eval(), (batches()[0],)).module()
    assert repr(CoreMLQuantizer("w8")) == "CoreMLQuantizer('w8')"
    assert prepare_pt2e(graph, CoreMLQuantizer("w8")) is not None


class Cache(nn.Module):
    """Writes buffers: every result depends on all earlier inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.full((4,), 0.5))
        self.register_buffer("steps", torch.zeros(1, dtype=torch.long))
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x)
        self.steps += 1
        return self.layer(self.total * 1.0)


def cache() -> nn.Module:
    torch.manual_seed(0)
    return Cache().eval()


def prepared_cache(model: nn.Module) -> GraphModule:
    return prepare_pt2e(torch.export.export(model, (torch.ones(4),)).module(), CoreMLQuantizer())


@pytest.mark.parametrize("fails", [False, True])
def test_buffers_that_the_model_writes_end_as_they_were(fails: bool) -> None:
    batches = [torch.ones(4), torch.full((4,), 2.0)]
    model = cache()
    graph = prepared_cache(model)
    if fails:
        with pytest.raises(CalibrationError, match="Batch 2"):
            calibrate(graph, [*batches, torch.full((4,), torch.inf)])
    else:
        calibrate(graph, batches)
    assert any(float(seen.max_val.max()) == 3.5 for seen in observers_of(graph).values()) or fails, "caches go on"
    for holder in (model, graph):
        assert torch.equal(holder.total, torch.full((4,), 0.5))
        assert holder.steps.item() == 0


@pytest.mark.parametrize("done", [1, 3])
def test_buffers_that_the_model_writes_go_on_after_an_interruption(done: int, tmp_path: Path) -> None:
    def steps(fail: bool) -> Iterator[Tensor]:
        for index in range(5):
            if fail and index == done:
                raise Interruption
            yield torch.full((4,), float(index - 2))

    path = tmp_path / "calibration"
    with pytest.raises(Interruption):
        calibrate(prepared_cache(cache()), steps(fail=True), checkpoint=path, checkpoint_every=1)
    graph, expected = prepared_cache(cache()), prepared_cache(cache())
    assert calibrate(graph, steps(fail=False), checkpoint=path) == 5
    calibrate(expected, steps(fail=False))
    assert qparams(graph) == qparams(expected)
    assert torch.equal(graph.total, torch.full((4,), 0.5))
    assert graph.steps.item() == 0
