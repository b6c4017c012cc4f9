"""Models that training cannot start from, exports of models that still train, and rounding that was never trained."""

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

from coreml_quantizer import CoreMLQuantizer, LinearQuantizer, QuantizerError, QuantizerWarning

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(4, 4, 1))


def exported(model: nn.Module, x: Tensor = X) -> GraphModule:
    return torch.export.export(model, (x,)).module()


def by_linear_quantizer(config: object = None) -> nn.Module:
    return LinearQuantizer(small(), config).prepare(X)


def by_pt2e(config: object = None) -> nn.Module:
    return prepare_qat_pt2e(exported(small().train()), CoreMLQuantizer(config))


def calibrated() -> nn.Module:
    return prepare_pt2e(exported(small().eval()), CoreMLQuantizer())


@pytest.mark.parametrize("made", [by_linear_quantizer, by_pt2e, calibrated])
def test_prepared_models_are_not_prepared_again(made: Callable[[], GraphModule]) -> None:
    with pytest.raises(QuantizerError, match=r"prepared already: '.*convert it first"):
        LinearQuantizer(nn.Sequential(made())).prepare(X)
    with pytest.raises(QuantizerError, match=r"prepared already: '.*convert it first"):
        prepare_qat_pt2e(made(), CoreMLQuantizer())
    with pytest.raises(QuantizerError, match=r"prepared already: '.*convert it first"):
        prepare_pt2e(made(), CoreMLQuantizer())


@pytest.mark.filterwarnings("ignore:.*compute in bfloat16")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    model, x = small().to(dtype), X.to(dtype)
    for prepare in (
        lambda: LinearQuantizer(model).prepare(x),
        lambda: prepare_qat_pt2e(exported(model.train(), x), CoreMLQuantizer()),
    ):
        with pytest.raises(QuantizerError, match=rf"'_0_weight' is {dtype}.*Train in float32.*torch.autocast"):
            prepare()


def test_half_precision_by_autocast_trains() -> None:
    quantizer = LinearQuantizer(small())
    prepared = quantizer.prepare(X)
    with torch.autocast("cpu", torch.bfloat16):
        result = prepared(X)
    result.sum().backward()
    quantizer.step()
    assert all(torch.isfinite(p.grad).all() for p in prepared.parameters())
    assert quantizer.finalize()(X).dtype is torch.float32


CONFIGS = {
    "w8a8": None,
    "w8": "w8",
    "block": "w4_block32",
    "lut": "lut4",
    "learnable": {"global_config": {"algorithm": "learnable"}},
    "float": {"global_config": None},
}


@pytest.mark.filterwarnings("ignore:The configuration quantizes nothing")
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("made", [by_linear_quantizer, by_pt2e])
def test_a_model_that_trains_is_not_exported(made: Callable[[object], GraphModule], name: str) -> None:
    prepared = made(CONFIGS[name])
    with pytest.raises(QuantizerError, match=re.escape("Convert it first: convert_pt2e(model), or finalize()")):
        torch.export.export(prepared, (X,))
    prepared(X)
    torch.export.export(convert_pt2e(prepared), (X,))


def trained(milestones: list[int] | None, steps: int) -> tuple[LinearQuantizer, GraphModule]:
    quantizer = LinearQuantizer(small(), {"global_config": {"milestones": milestones}})
    prepared = quantizer.prepare(X)
    for _ in range(steps):
        prepared(X)
        quantizer.step()
    prepared(X)
    return quantizer, prepared


@pytest.mark.parametrize("steps", [1, 5])
def test_rounding_that_was_never_on_is_told(steps: int) -> None:
    quantizer, prepared = trained([0, 5, 9, 8], steps)
    with pytest.warns(QuantizerWarning, match=rf"\d of \d quantizers never .* is step 5, .* called {steps} times"):
        quantizer.finalize()
    with pytest.warns(QuantizerWarning, match="never rounded"):
        convert_pt2e(prepared)


@pytest.mark.parametrize(
    ("milestones", "steps"), [(None, 0), ([0, 5, 9, 8], 6), ([0, 0, -1, -1], 1), ([0, -1, -1, -1], 3)]
)
def test_rounding_that_was_on_or_not_wanted_is_not(milestones: list[int] | None, steps: int) -> None:
    quantizer, _ = trained(milestones, steps)
    with warnings.catch_warnings():
        warnings.simplefilter("error", QuantizerWarning)
        quantizer.finalize()


def test_rounding_by_the_context_or_a_checkpoint_counts() -> None:
    quantizer, _ = trained([0, 50, -1, -1], 2)
    with quantizer.training() as model:
        model(X)
    _, done = trained([0, 1, -1, -1], 3)
    resumed, prepared = trained([0, 1, -1, -1], 0)
    prepared.load_state_dict(done.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error", QuantizerWarning)
        quantizer.finalize()
        resumed.finalize()
