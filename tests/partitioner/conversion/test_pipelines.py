"""What a lowering makes of an architecture is what the default passes of Core ML Tools make of it, in less time."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import coremltools as ct
import pytest
import torch
from helpers.models import signal_to_noise
from sweep.entry import build
from sweep.table import ARCHITECTURES

from partitioner import backend, host, lower
from partitioner.conversion import fast_mil, session
from partitioner.conversion.convert import convert


def operations(spec: Any) -> Counter[str]:
    """How often each MIL operation occurs, constants left out."""
    (function,) = spec.mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    return Counter(operation.type for operation in block.operations if operation.type != "const")


def by_default(program: torch.export.ExportedProgram, target: ct.target | None, folder: Path) -> Any:
    """The model that Core ML Tools makes with its own passes and its own bookkeeping."""
    with session.quiet_conversion():
        return ct.convert(
            program,
            pass_pipeline=ct.PassPipeline.DEFAULT,
            minimum_deployment_target=target,
            package_dir=str(Path(tempfile.mkdtemp(dir=folder)) / "model.mlpackage"),
            skip_model_load=True,
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    converted = []

    def kept(program: Any, options: Any) -> Any:
        model = convert(program, options)
        converted.append((program, options, model))
        return model

    monkeypatch.setattr(backend, "convert", kept)
    model, inputs = build(ARCHITECTURES[name])
    lowered = lower(torch.export.export(model, inputs))
    assert converted
    monkeypatch.setattr(fast_mil, "replacements", lambda: ())
    for program, options, ours in converted:
        theirs = by_default(program, options.minimum_deployment_target, tmp_path)
        # What float16 cannot hold is kept in float32 on purpose, which takes casts.
        ignored = {"cast"} if ours.notes else set()
        found, expected = (operations(spec) for spec in (ours.spec, theirs.get_spec()))
        assert {kind: found[kind] for kind in found.keys() - ignored} == {
            kind: expected[kind] for kind in expected.keys() - ignored
        }
    if lowered.direct:
        description = theirs.get_spec().description
        values = {feature.name: value.numpy() for feature, value in zip(description.input, inputs, strict=True)}
        named = host.load(theirs, policy="float32").predict(values)
        results = host.run(lowered.buffer, *inputs, policy="float32")
        for feature, result, exact in zip(description.output, results, model(*inputs), strict=True):
            reference = torch.from_numpy(named[feature.name])
            if ours.notes:  # by default, a mask that overflows may leave nothing but NaN
                theirs_exact = signal_to_noise(exact, reference.nan_to_num())
                assert signal_to_noise(exact, result) >= theirs_exact - 1
            else:
                torch.testing.assert_close(result, reference, rtol=0, atol=0)
