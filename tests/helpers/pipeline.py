"""From a model to a `.pte`, with whatever the tests want to look at on the way."""

from collections.abc import Iterable
from dataclasses import dataclass

import coremltools as ct
import torch
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import CoreMLQuantizer
from partitioner import CoreMLBackend, CoreMLPartitioner

W8A8 = None
W8 = {"global_config": {"activation_dtype": "float32"}}


@dataclass(frozen=True)
class Lowered:
    converted: nn.Module
    pte: bytes
    delegates: int
    left_over: list[str]


def lower(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    config: object,
    strict: bool = False,
    calibration: Iterable[Tensor] = (),
) -> Lowered:
    """Quantizes, lowers for iOS 17, and counts what ended up where.

    Calibrates on `calibration`; W8A8 by default on the inputs, everything else on nothing.
    """
    prepared = prepare_pt2e(torch.export.export(model, inputs, strict=strict).module(), CoreMLQuantizer(config))
    for batch in calibration:
        prepared(batch)
    if config is W8A8:
        prepared(*inputs)
    converted = convert_pt2e(prepared)
    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS17)
    edge = to_edge_transform_and_lower(
        torch.export.export(converted, inputs), partitioner=[CoreMLPartitioner(compile_specs=specs)]
    )
    targets = [str(node.target) for node in edge.exported_program().graph.nodes if node.op == "call_function"]
    return Lowered(
        converted=converted,
        pte=bytes(edge.to_executorch().buffer),
        delegates=sum("executorch_call_delegate" in target for target in targets),
        left_over=[target for target in targets if "call_delegate" not in target and "getitem" not in target],
    )
