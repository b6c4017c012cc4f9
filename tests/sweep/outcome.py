"""One architecture, all the way: quantized, lowered, run on the host and compared with its converted graph."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from executorch.exir import to_edge_transform_and_lower
from helpers.models import signal_to_noise
from sweep.entry import Entry, build
from torch import Tensor
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import CoreMLQuantizer
from partitioner import CoreMLPartitioner, host

CONFIGURATIONS = {"w8a8": None, "w8": {"global_config": {"activation_dtype": "float32"}}}


@dataclass
class Outcome:
    """What became of one architecture.

    Attributes:
        error: The stage that failed and why, or None.
        delegates: How many partitions Core ML took.
        outside: Operations left on the CPU, and how often.
        reasons: Why they were left.
        noise: Precision policy -> signal-to-noise ratio in decibels against the converted graph.
        own: Signal-to-noise ratio of the converted graph against the float model.
        seconds: Stage -> time.
    """

    error: str | None = None
    delegates: int = 0
    outside: dict[str, int] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    noise: dict[str, float] = field(default_factory=dict)
    own: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.error is not None:
            return f"ERROR {self.error}"
        outside = ", ".join(f"{count}x {name}" for name, count in self.outside.items()) or "nothing"
        noise = "  ".join(f"{policy} {decibels:5.1f} dB" for policy, decibels in self.noise.items())
        return f"{self.delegates} delegates  {noise}  (own {self.own:.1f})  on the CPU: {outside}"


def run(entry: Entry, configuration: str) -> Outcome:
    """Takes one architecture through everything; failures are part of the outcome."""
    outcome = Outcome()
    stage = "build"
    try:
        for done in _stages(entry, configuration, outcome):
            stage = done
    except Exception as error:  # whatever went wrong is what the sweep reports  # noqa: BLE001
        outcome.error = f"after {stage}: {type(error).__name__}: {error}"
    return outcome


def _stages(entry: Entry, configuration: str, outcome: Outcome) -> Iterator[str]:
    """Yields the name of each stage once it is done."""
    started = time.perf_counter()

    def done(stage: str) -> str:
        nonlocal started
        now = time.perf_counter()
        outcome.seconds[stage], started = now - started, now
        return stage

    model, inputs = build(entry)
    yield done("build")
    graph = torch.export.export(model, inputs).module()
    yield done("export")
    prepared = prepare_pt2e(graph, CoreMLQuantizer(CONFIGURATIONS[configuration]))
    with torch.no_grad():
        prepared(*inputs)
    yield done("prepare and calibrate")
    converted = convert_pt2e(prepared)
    with torch.no_grad():
        expected = converted(*inputs)
        outcome.own = _noise(model(*inputs), expected)
    yield done("convert")
    program = torch.export.export(converted, inputs)
    yield done("export again")
    pte = _lower(program, outcome)
    yield done("lower")
    for policy in ("float32", "storage16"):
        outcome.noise[policy] = _noise(expected, host.run(pte, *inputs, policy=policy))
    yield done("host run")


def _lower(program: torch.export.ExportedProgram, outcome: Outcome) -> bytes:
    partitioner = CoreMLPartitioner()
    edge = to_edge_transform_and_lower(program, partitioner=[partitioner])
    targets = [str(node.target) for node in edge.exported_program().graph.nodes if node.op == "call_function"]
    outcome.delegates = sum("executorch_call_delegate" in target for target in targets)
    ours = ("executorch_call_delegate", "getitem")
    outcome.outside = dict(Counter(target for target in targets if not any(name in target for name in ours)))
    outcome.reasons = list(dict.fromkeys(str(rejection) for rejection in partitioner.rejections))
    return bytes(edge.to_executorch().buffer)


def _noise(expected: tuple[Tensor, ...], results: list[Tensor] | tuple[Tensor, ...]) -> float:
    return min(signal_to_noise(reference, result) for reference, result in zip(expected, results, strict=True))
