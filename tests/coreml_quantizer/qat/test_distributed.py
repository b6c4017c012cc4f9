"""Two processes under torchrun, with DistributedDataParallel and with FSDP2 (`fully_shard`)."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trained_networks import batches, everything
from safetensors.torch import load_file

from coreml_quantizer import LinearQuantizer

from .test_linear_quantizer import EXAMPLE
from .test_prepare_qat import largest_step
from .train_sharded import CASES, CONFIGS, MILESTONES, SAVED_AFTER, STEPS

Results = Mapping[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both processes wrote what they ended with."""
    path = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("train_sharded.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, path]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return path


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[Results]:
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_qparams_are_the_same_after_every_step(ranks: list[Results], case: str) -> None:
    first, second = (rank[case]["history"] for rank in ranks)
    assert first == second
    assert [len(qparams) > 0 for qparams in first] == [False, False, *[True] * (STEPS - 2)], "observers on at step 1"
    assert first[2] != first[3]
    still = first[MILESTONES[2]] == first[-1]
    assert still == ("learnable" not in case), "observers are off by then; learned steps move on"


@pytest.mark.parametrize("case", CASES)
def test_the_whole_model_is_the_same(ranks: list[Results], case: str) -> None:
    first, second = (rank[case]["state"] for rank in ranks)
    assert any("running_mean" in name for name in first)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("case", CASES)
def test_training_resumes_bit_exactly(ranks: list[Results], case: str) -> None:
    for rank in ranks:
        state, resumed = rank[case]["state"], rank[case]["resumed"]
        assert state.keys() == resumed.keys()
        different = [name for name, value in state.items() if not torch.equal(value, resumed[name])]
        assert not different


def test_shards_and_replicas_train_alike(ranks: list[Results]) -> None:
    """Both reduce the same gradients and ranges; replicas take the batch-norm statistics from the first rank."""
    for name in ("vanilla", "learnable"):
        replicated, sharded = (ranks[0][f"{kind} {name}"]["state"] for kind in ("replicated", "sharded"))
        assert replicated.keys() == sharded.keys()
        for key, value in replicated.items():
            torch.testing.assert_close(
                value, sharded[key], rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
            )


def test_a_shared_checkpoint_opens_without_ranks(folder: Path) -> None:
    """What several ranks wrote in the middle of the schedule is evaluated, and trained on, by one process."""
    for name, config in CONFIGS.items():
        quantizer = LinearQuantizer(everything(), config)
        prepared = quantizer.prepare(EXAMPLE)
        prepared.load_state_dict(load_file(folder / f"replicated {name}.safetensors"))
        steps = {int(value) for key, value in prepared.state_dict().items() if key.endswith(".steps")}
        assert steps == {SAVED_AFTER}
        (batch,) = batches(1)
        prepared.train(False)
        with torch.no_grad():
            trained, converted = prepared(batch), quantizer.finalize()
            assert (trained - converted(batch)).abs().max() <= 1.01 * largest_step(converted)


def test_estimators_that_cannot_be_merged_are_refused(ranks: list[Results]) -> None:
    for rank in ranks:
        assert "HistogramObserver" in rank["refused"]
        assert "moving_average" in rank["refused"]
