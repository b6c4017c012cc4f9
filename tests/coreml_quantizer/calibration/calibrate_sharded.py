"""Calibrates in every process of a torchrun, and writes what each ends with; run by test_calibration.py."""

import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from coreml_quantizer import (
    ActivationConfig,
    CalibrationError,
    CoreMLQuantizer,
    LayerConfig,
    QuantizerConfig,
    calibrate,
)
from coreml_quantizer.calibration.observing import observers_of
from coreml_quantizer.estimators import ESTIMATORS


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 6, generator=generator) * (index + 1) for index in range(7)]


def prepared(estimator: str) -> torch.fx.GraphModule:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)).eval()
    config = QuantizerConfig(LayerConfig(activation=ActivationConfig(estimator=estimator)))
    return prepare_pt2e(torch.export.export(model, (torch.zeros(4, 6),)).module(), CoreMLQuantizer(config))


def qparams(graph: torch.fx.GraphModule) -> dict[str, tuple[list[float], list[int]]]:
    found = {name: observer.calculate_qparams() for name, observer in observers_of(graph).items()}
    return {name: (scale.tolist(), zero_point.tolist()) for name, (scale, zero_point) in found.items()}


def main() -> None:
    distributed.init_process_group("gloo")
    rank, results = distributed.get_rank(), {}
    for estimator in ESTIMATORS:
        graph = prepared(estimator)
        seen = calibrate(graph, batches(), shard=True)
        results[estimator] = (seen, qparams(graph))
        graph = prepared(estimator)
        calibrate(graph, batches()[:3], shard=True)
        calibrate(graph, batches()[3:], shard=True)
        results[f"{estimator} in two calls"] = qparams(graph)
    mine = batches()[rank::2]
    graph = prepared("min_max")
    results["own loader"] = (calibrate(graph, mine), qparams(graph))
    if rank:
        mine[1][0, 0] = torch.nan
    try:
        calibrate(prepared("min_max"), mine)
    except CalibrationError as error:
        results["error"] = (type(error).__name__, str(error))
    try:
        calibrate(prepared("mse" if rank else "histogram"), batches())
    except CalibrationError as error:
        results["different"] = str(error)
    torch.save(results, Path(sys.argv[1]) / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
