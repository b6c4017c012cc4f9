"""Methods share one model by default, and stay apart when they cannot or must not."""

import json

import coremltools as ct
import pytest
import torch
from executorch.exir import EdgeProgramManager, to_edge_transform_and_lower
from executorch.exir._serialize._program import deserialize_pte_binary
from helpers.lowering import SPEC_PATH, WEIGHTS_PATH, delegates
from torch import nn

from partitioner import CoreMLBackend, CoreMLPartitioner
from partitioner.errors import CompileSpecError, DeploymentTargetError
from partitioner.format.blob import read_blob
from partitioner.options.compile_specs import WeightSharing

WIDTH = 256
WEIGHT_BYTES = 2 * WIDTH * WIDTH  # float16


class Doubled(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.acosh(self.layer(x)) * 2


def lower_methods(
    *, second: nn.Module | None = None, sharing: WeightSharing | None = None, target: ct.target | None = None
) -> EdgeProgramManager:
    torch.manual_seed(0)
    layer = nn.Linear(WIDTH, WIDTH).eval()
    programs = {
        "decode": torch.export.export(layer, (torch.zeros(1, WIDTH),)),
        "prefill": torch.export.export(second or layer, (torch.zeros(8, WIDTH),)),
    }
    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=target)
    if sharing is not None:
        specs.append(CoreMLBackend.generate_multimethod_weight_sharing_strategy_compile_spec(sharing))
    return to_edge_transform_and_lower(programs, partitioner=[CoreMLPartitioner(compile_specs=specs)])


def processed(manager: EdgeProgramManager) -> dict[str, bytes]:
    return {method: delegates(manager, method)[0].processed_bytes for method in ("decode", "prefill")}


@pytest.mark.parametrize("sharing", [None, WeightSharing.POSITIONAL])
def test_methods_share_their_weights(sharing: WeightSharing | None) -> None:
    buffer = lower_methods(sharing=sharing).to_executorch().buffer
    assert WEIGHT_BYTES < len(buffer) < 1.5 * WEIGHT_BYTES


def test_references_lead_to_one_model_with_a_function_for_each_method() -> None:
    manager = lower_methods()
    references = {}
    for method, data in processed(manager).items():
        assert data[:4] == b"CMJR"
        references[method] = json.loads(data[4:])
        assert references[method]["version"] == 1
        assert references[method]["functionName"] == method
    (key,) = {reference["key"] for reference in references.values()}
    pte = deserialize_pte_binary(manager.to_executorch().buffer)
    entry = pte.named_data.pte_data[key]
    files = read_blob(pte.named_data.buffers[entry.buffer_index])
    metadata = json.loads(bytes(files["metadata.json"]))
    assert key == "coreml_" + metadata["identifier"]
    assert set(metadata["methods"]) == {"decode", "prefill"}
    assert all(names["inputNames"] and names["outputNames"] for names in metadata["methods"].values())
    assert len(files[WEIGHTS_PATH]) < 1.1 * WEIGHT_BYTES
    assert len(files[SPEC_PATH]) > 0


def test_shared_models_are_reproducible() -> None:
    assert lower_methods().to_executorch().buffer == lower_methods().to_executorch().buffer


@pytest.mark.parametrize(
    "options", [{"sharing": WeightSharing.DISABLED}, {"target": ct.target.iOS17}], ids=["disabled", "below iOS18"]
)
def test_methods_apart_hold_a_model_each(options: dict) -> None:
    manager = lower_methods(**options)
    for data in processed(manager).values():
        assert len(read_blob(data)[WEIGHTS_PATH]) > WEIGHT_BYTES


def test_sharing_that_cannot_be_is_refused_when_asked_for() -> None:
    with pytest.raises(DeploymentTargetError, match="need the deployment target iOS18; it is iOS17"):
        lower_methods(sharing=WeightSharing.POSITIONAL, target=ct.target.iOS17)
    with pytest.raises(CompileSpecError, match=r"different numbers of partitions \(decode: 1, prefill: 2\)"):
        lower_methods(sharing=WeightSharing.POSITIONAL, second=Doubled(nn.Linear(WIDTH, WIDTH)))


def test_unequal_methods_stay_apart_by_default() -> None:
    manager = lower_methods(second=Doubled(nn.Linear(WIDTH, WIDTH)))
    assert [len(delegates(manager, method)) for method in ("decode", "prefill")] == [1, 2]
