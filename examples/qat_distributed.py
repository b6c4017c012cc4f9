"""Quantization-aware training on several processes: replicated (DistributedDataParallel) or sharded (FSDP2).

Trains the quickstart's CNN on scikit-learn's handwritten digits, first in floating point, then with 4-bit weights and
8-bit activations, each process on its own share of every batch. After `step()` all have the same ranges. In the middle
of the milestone schedule the model goes through a safetensors file, into one that was prepared anew. Exits with an
error when the processes end with different models, or when training loses more than a point.

Run it with `torchrun --nproc-per-node 2 examples/qat_distributed.py [--shard]`.
"""

import quiet  # noqa: F401, I001  (first: it silences what the imports below print off macOS)
import argparse
import copy
import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from quickstart import BATCH, Digits, load_data, make_model
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from coreml_quantizer import ActivationConfig, LayerConfig, LinearQuantizer, QuantizerConfig, WeightConfig

FLOAT_EPOCHS, QAT_EPOCHS = 8, 4
MILESTONES = (0, 20, 140, 100)
LARGEST_LOSS = 1.0
"""Points of test accuracy that 4-bit weights may cost."""
WHOLE = StateDictOptions(full_state_dict=True)


def spread(model: nn.Module, shard: bool) -> nn.Module:
    """Returns `model` as all processes train it together."""
    if not shard:
        return DistributedDataParallel(model)
    sharded: nn.Module = fully_shard(model)
    return sharded


def my_batches(digits: Digits, seed: int) -> list[Tensor]:
    """Returns the indices of one epoch that this process trains on: a share of every batch."""
    order = torch.randperm(len(digits.train_labels), generator=torch.Generator().manual_seed(seed))
    whole = order[: len(order) // BATCH * BATCH].split(BATCH)
    return [batch[dist.get_rank() :: dist.get_world_size()] for batch in whole]


def train(
    model: nn.Module, digits: Digits, epochs: range, rate: float, quantizer: LinearQuantizer | None = None
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for epoch in epochs:
        for batch in my_batches(digits, epoch):
            loss = nn.functional.cross_entropy(model(digits.train_images[batch]), digits.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if quantizer is not None:
                quantizer.step()


def prepared_from(model: nn.Module, digits: Digits) -> tuple[LinearQuantizer, nn.Module]:
    layer = LayerConfig(WeightConfig("int4"), ActivationConfig(), milestones=MILESTONES)
    quantizer = LinearQuantizer(copy.deepcopy(model), QuantizerConfig(layer))
    return quantizer, quantizer.prepare(digits.train_images[:1])


def train_quantized(model: nn.Module, digits: Digits, shard: bool, checkpoint: Path) -> dict[str, Tensor]:
    """Trains in two halves with a checkpoint between them; returns the whole state, on every process."""
    quantizer, prepared = prepared_from(model, digits)
    train(spread(prepared, shard), digits, range(QAT_EPOCHS // 2), 5e-4, quantizer)
    state = get_model_state_dict(prepared, options=WHOLE)
    if dist.get_rank() == 0:
        save_file({name: value.contiguous() for name, value in state.items()}, checkpoint)
    dist.barrier()
    quantizer, prepared = prepared_from(model, digits)
    together = spread(prepared, shard)
    set_model_state_dict(prepared, load_file(checkpoint), options=WHOLE)
    train(together, digits, range(QAT_EPOCHS // 2, QAT_EPOCHS), 2e-4, quantizer)
    return get_model_state_dict(prepared, options=WHOLE)


def accuracy(model: nn.Module, digits: Digits) -> float:
    """Per cent of the test images."""
    with torch.no_grad():
        return 100 * (model(digits.test_images).argmax(1) == digits.test_labels).float().mean().item()


def same_everywhere(state: dict[str, Tensor]) -> bool:
    """Returns whether all processes have the same tensors."""
    mine = torch.cat([value.double().flatten() for value in state.values()])
    lowest, highest = mine.clone(), mine.clone()
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return torch.equal(lowest, highest)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shard", action="store_true", help="FSDP2 instead of DistributedDataParallel")
    shard = parser.parse_args().shard
    if "RANK" not in os.environ:
        sys.exit(
            "This example trains on several processes: start it with\n  torchrun --nproc-per-node 2 " + sys.argv[0]
        )
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    digits, model = load_data(), make_model()
    train(DistributedDataParallel(model), digits, range(FLOAT_EPOCHS), 2e-3)
    with tempfile.TemporaryDirectory() as folder:
        shared = [folder]
        dist.broadcast_object_list(shared)
        state = train_quantized(model, digits, shard, Path(shared[0]) / "qat.safetensors")
        same = same_everywhere(state)
    quantizer, whole = prepared_from(model, digits)
    whole.load_state_dict(state)
    before, after = accuracy(model.eval(), digits), accuracy(quantizer.finalize(), digits)
    if dist.get_rank() == 0:
        console = Console()
        console.print(f"{dist.get_world_size()} processes, {'sharded' if shard else 'replicated'}")
        console.print(f"test accuracy: float {before:.2f} %, W4A8 {after:.2f} %")
        console.print("all processes ended with the same model" if same else "[red]FAILED[/]: the models differ")
    dist.destroy_process_group()
    return 0 if same and after >= before - LARGEST_LOSS else 1


if __name__ == "__main__":
    sys.exit(main())
