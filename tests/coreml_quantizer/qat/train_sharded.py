"""Trains in every process of a torchrun, and writes what each ends with; run by test_distributed.py."""

import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from coreml_quantizer import ActivationConfig, LayerConfig, LinearQuantizer, QuantizerConfig, QuantizerError
from coreml_quantizer.qat.quantizers.estimated import FakeQuantize

# The tests run as a package, this script does not.
sys.path.insert(0, str(Path(__file__).parents[2]))
from helpers.trained_networks import IMAGE, batches, everything, loss_of

STEPS, SAVED_AFTER = 8, 4
MILESTONES = [1, 2, 6, 5]
CONFIGS: Mapping[str, object] = {
    "vanilla": {"global_config": {"milestones": MILESTONES}},
    "min_max": {"global_config": {"milestones": MILESTONES, "activation_observer": "min_max"}},
    "learnable": {"global_config": {"milestones": MILESTONES, "algorithm": "learnable"}},
}
CASES = ("replicated vanilla", "replicated min_max", "replicated learnable", "sharded vanilla", "sharded learnable")
WHOLE = StateDictOptions(full_state_dict=True)

State = dict[str, Tensor]


class Run:
    """A model under training, with what its steps need."""

    def __init__(self, config: object, shards: bool) -> None:
        self.quantizer = LinearQuantizer(everything(), config)
        self.prepared = self.quantizer.prepare(torch.rand(1, *IMAGE[1:]))
        self.model: nn.Module = fully_shard(self.prepared) if shards else DistributedDataParallel(self.prepared)
        self.optimizer = torch.optim.SGD(self.prepared.parameters(), lr=0.02, momentum=0.9)

    def train(self, steps: range) -> list[dict[str, Any]]:
        """Returns all qparams after each step."""
        rank, found = distributed.get_rank(), []
        for step in steps:
            torch.manual_seed(100 * step + rank)
            batch = batches(STEPS, seed=rank)[step]
            self.optimizer.zero_grad()
            loss_of(self.model(batch), batch).backward()
            self.optimizer.step()
            self.quantizer.step()
            found.append(qparams(self.prepared))
        return found

    def save(self, path: Path) -> dict[str, Any]:
        """Writes the model to a file that all ranks share; returns the state of the optimizer."""
        state = get_model_state_dict(self.prepared, options=WHOLE)
        if distributed.get_rank() == 0:
            save_file({name: value.contiguous() for name, value in state.items()}, path)
        distributed.barrier()
        return copy.deepcopy(get_optimizer_state_dict(self.prepared, self.optimizer, options=WHOLE))

    def load(self, path: Path, optimizer: dict[str, Any]) -> None:
        set_model_state_dict(self.prepared, load_file(path), options=WHOLE)
        set_optimizer_state_dict(self.prepared, self.optimizer, optimizer, options=WHOLE)


def qparams(prepared: nn.Module) -> dict[str, Any]:
    found = {q.tensor_name: q for q in prepared.modules() if isinstance(q, FakeQuantize) and q.known}
    both = {name: quantizer.calculate_qparams() for name, quantizer in found.items()}
    return {name: (scale.tolist(), zero_point.tolist()) for name, (scale, zero_point) in both.items()}


def whole_state(run: Run) -> State:
    return get_model_state_dict(run.prepared, options=WHOLE)


def trained(config: object, shards: bool, path: Path) -> dict[str, Any]:
    run = Run(config, shards)
    history = run.train(range(SAVED_AFTER))
    optimizer = run.save(path)
    history += run.train(range(SAVED_AFTER, STEPS))
    resumed = Run(config, shards)
    resumed.load(path, optimizer)
    resumed.train(range(SAVED_AFTER, STEPS))
    return {"history": history, "state": whole_state(run), "resumed": whole_state(resumed)}


def refused() -> str:
    """Returns what is said of an estimator that cannot be merged."""
    run = Run(QuantizerConfig(LayerConfig(activation=ActivationConfig(estimator="histogram"))), shards=False)
    try:
        run.train(range(1))
    except QuantizerError as error:
        return str(error)
    return ""


def main() -> None:
    distributed.init_process_group("gloo")
    folder = Path(sys.argv[1])
    results: dict[str, Any] = {"refused": refused()}
    for key in CASES:
        kind, name = key.split()
        results[key] = trained(CONFIGS[name], kind == "sharded", folder / f"{key}.safetensors")
    torch.save(results, folder / f"{distributed.get_rank()}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
