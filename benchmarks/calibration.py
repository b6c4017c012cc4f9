"""Time of a calibration forward against the float forward of the same exported graph, ours and others', in one run.

    python benchmarks/calibration.py [--threads 1] [--rounds 15] [--output docs/benchmarks/calibration.json]

Contenders take turns, so that a busy machine slows all of them alike; the figure is the fastest of all rounds.
coreai-opt takes part where it is installed (`pip install --no-deps coreai-opt` is enough). Fails when ours takes more
than 1.3 times the float forward.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.observer import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
from torchao.quantization.pt2e.quantizer import Quantizer

from coreml_quantizer import CoreMLQuantizer
from coreml_quantizer.calibration.observing import observers_of

LARGEST_RATIO = 1.3
Inputs = tuple[Tensor, ...]
Forward = Callable[..., object]


def mobilenet_v2() -> tuple[nn.Module, Inputs]:
    """MobileNetV2 in its published size, 224 x 224."""
    from transformers import MobileNetV2Config, MobileNetV2Model

    return MobileNetV2Model(MobileNetV2Config()).eval(), (torch.randn(1, 3, 224, 224),)


def vit_b16() -> tuple[nn.Module, Inputs]:
    """ViT-B/16 in its published size, 224 x 224."""
    from transformers import ViTConfig, ViTModel

    return ViTModel(ViTConfig()).eval(), (torch.randn(1, 3, 224, 224),)


MODELS = {"MobileNetV2": mobilenet_v2, "ViT-B/16": vit_b16}


def exported(model: nn.Module, inputs: Inputs) -> GraphModule:
    return torch.export.export(model, inputs).module()


def ours(model: nn.Module, inputs: Inputs) -> GraphModule:
    return prepare_pt2e(exported(model, inputs), CoreMLQuantizer())


def torchao_min_max(model: nn.Module, inputs: Inputs) -> GraphModule:
    """torchao's plain min-max in the places where ours observes."""
    prepared = ours(model, inputs)
    for name, observer in observers_of(prepared).items():
        settings = {"dtype": observer.dtype, "quant_min": observer.quant_min, "quant_max": observer.quant_max}
        if observer.ch_axis >= 0:
            setattr(prepared, name, PerChannelMinMaxObserver(ch_axis=observer.ch_axis, **settings))
        else:
            setattr(prepared, name, MinMaxObserver(**settings))
    return prepared


def stock(model: nn.Module, inputs: Inputs) -> GraphModule:
    from coremltools.optimize.torch.quantization import LinearQuantizerConfig, ModuleLinearQuantizerConfig
    from executorch.backends.apple.coreml.quantizer import CoreMLQuantizer as StockQuantizer

    return prepare_pt2e(
        exported(model, inputs), StockQuantizer(LinearQuantizerConfig(global_config=ModuleLinearQuantizerConfig()))
    )


def xnnpack(model: nn.Module, inputs: Inputs) -> GraphModule:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    quantizer: Quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    return prepare_pt2e(exported(model, inputs), quantizer)


@contextlib.contextmanager
def coreai(model: nn.Module, inputs: Inputs) -> Iterator[Forward]:
    from coreai_opt.quantization import Quantizer as CoreAIQuantizer

    quantizer = CoreAIQuantizer(model)
    prepared = quantizer.prepare(inputs)
    with quantizer.calibration_mode():
        yield prepared


@contextlib.contextmanager
def forward_of(contender: Callable[[nn.Module, Inputs], object], model: nn.Module, inputs: Inputs) -> Iterator[Forward]:
    made = contender(model, inputs)
    if isinstance(made, contextlib.AbstractContextManager):
        with made as forward:
            yield forward
    else:
        yield made  # type: ignore[misc]


CONTENDERS: dict[str, Callable[[nn.Module, Inputs], object]] = {
    "float": exported,
    "ours": ours,
    "torchao min-max": torchao_min_max,
    "XNNPACKQuantizer": xnnpack,
    "coreai-opt": coreai,
    "stock CoreMLQuantizer": stock,
}


def measure(name: str, rounds: int, wanted: list[str]) -> dict[str, object]:
    """Fastest forward of each contender in milliseconds, and its ratio to float; a reason where one does not run."""
    inputs = MODELS[name]()[1]
    forwards: dict[str, Forward] = {}
    fastest: dict[str, float] = {}
    failures: dict[str, str] = {}
    with contextlib.ExitStack() as stack, torch.no_grad():
        for contender in wanted:
            try:
                forward = stack.enter_context(forward_of(CONTENDERS[contender], MODELS[name]()[0], inputs))
                forward(*inputs)
            except Exception as error:  # noqa: BLE001 - whatever stops a contender is its result
                failures[contender] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            else:
                forwards[contender] = forward
        for _ in range(rounds):
            for contender, forward in forwards.items():
                start = time.perf_counter()
                forward(*inputs)
                took = time.perf_counter() - start
                fastest[contender] = min(took, fastest.get(contender, took))
    milliseconds = {contender: round(1000 * took, 2) for contender, took in fastest.items()}
    ratios = {contender: round(took / fastest["float"], 3) for contender, took in fastest.items()}
    return {"model": name, "milliseconds": milliseconds, "ratios": ratios, "did not run": failures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/calibration.json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    wanted = [name for name in CONTENDERS if name in {"float", "ours", *options.only}]
    rows = [measure(name, options.rounds, wanted) for name in MODELS]
    table = Table("contender", *MODELS, title="calibration forward / float forward")
    for contender in wanted:
        table.add_row(contender, *(str(row["ratios"].get(contender, "did not run")) for row in rows))  # type: ignore[attr-defined]
    Console().print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    settings = {**machine(), "threads": options.threads, "rounds": options.rounds}
    options.output.write_text(json.dumps({**settings, "rows": rows}, indent=2) + "\n")
    worst = max(float(row["ratios"]["ours"]) for row in rows)  # type: ignore[index]
    if worst > LARGEST_RATIO:
        print(f"FAILED: ours takes {worst:.2f} of the float forward, allowed is {LARGEST_RATIO}.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
