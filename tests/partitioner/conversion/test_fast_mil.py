"""What makes conversions fast does not change their results."""

import tempfile
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from helpers.minimal_quantizer import quantized
from helpers.models import build
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import nn
from torchao.quantization.granularity import PerGroup
from torchao.quantization.quant_api import IntxWeightOnlyConfig, quantize_

from partitioner.backend import CoreMLBackend
from partitioner.conversion import fast_mil, session
from partitioner.conversion.convert import convert, read_model
from partitioner.conversion.fast_mil import _beyond_half
from partitioner.conversion.pipelines import complete, default_pipeline
from partitioner.format.package import package_files
from partitioner.options.compile_specs import parse
from partitioner.rewrites.functional import functional


def plain(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return build(name)


def static(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    model, inputs = build(name)
    return quantized(model, inputs), inputs


def in_groups() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 64), nn.LayerNorm(64)).eval()
    quantize_(model, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(16)))
    return model, (torch.linspace(-1, 1, 128).reshape(2, 64),)


MODELS = {
    "bert": (lambda: plain("bert"), None),
    "unet": (lambda: plain("unet"), ct.target.iOS16),
    "mobilenet_v3 static": (lambda: static("mobilenet_v3"), ct.target.iOS17),
    "vit static": (lambda: static("vit"), ct.target.iOS18),
    "in groups": (in_groups, ct.target.iOS18),
}


@pytest.mark.parametrize("name", MODELS)
def test_equal_bytes_with_and_without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, target = MODELS[name]
    model, inputs = make()
    program = functional(torch.export.export(model, inputs))
    options = parse(CoreMLBackend.generate_compile_specs(minimum_deployment_target=target))
    fast = convert(program, options)
    monkeypatch.setattr(fast_mil, "replacements", lambda: ())
    slow = convert(program, options)
    assert package_files(fast.spec, fast.weights) == package_files(slow.spec, slow.weights)
    with tempfile.TemporaryDirectory() as directory, session.quiet_conversion():
        model = ct.convert(
            program,
            pass_pipeline=complete(default_pipeline()),
            minimum_deployment_target=target,
            package_dir=str(Path(directory) / "model.mlpackage"),
            skip_model_load=True,
        )
        stock = read_model(model)
    assert package_files(fast.spec, fast.weights) == package_files(stock.spec, stock.weights)


def by_definition(value: np.ndarray) -> bool:
    sizes = [abs(float(item)) for item in value.flatten()]
    return any(65504 < size < float(np.float32(1e38)) for size in sizes)


FLOATS = st.one_of(
    st.floats(width=32), st.sampled_from([65504.0, 65536.0, -65536.0, 1e38, -1e38, 9.9e37, np.inf, -np.inf, np.nan])
)


@given(npst.arrays(np.float32, npst.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4), elements=FLOATS))
def test_what_float16_cannot_hold(value: np.ndarray) -> None:
    assert _beyond_half(value) == by_definition(value)
