"""Delegates of models converted elsewhere, and of models compiled here."""

import shutil
from pathlib import Path

import coremltools as ct
import pytest
import torch
from helpers.lowering import blob, lower

from partitioner import CoreMLBackend, host
from partitioner.conversion import delegate
from partitioner.errors import ConversionError
from partitioner.format.blob import read_blob

X = (torch.linspace(-1, 1, 12).reshape(2, 6),)
COMPILED = CoreMLBackend.MODEL_TYPE.COMPILED_MODEL


def package() -> dict[str, bytes]:
    files = read_blob(blob(lower(torch.nn.Linear(6, 4), X)))
    root = "model.mlpackage/"
    return {path.removeprefix(root): bytes(view) for path, view in files.items() if path.startswith(root)}


def test_a_model_converted_elsewhere_runs_and_keeps_its_notes() -> None:
    program = torch.export.export(torch.nn.Linear(6, 4), X).run_decompositions({})
    model = ct.convert(program, convert_to="mlprogram", skip_model_load=True)
    result = CoreMLBackend.preprocess_model(model, model_type=CoreMLBackend.MODEL_TYPE.MODEL)
    (output,) = host.load(result.processed_bytes, policy="float32").run(list(X))
    assert output.shape == (2, 4)
    assert model.get_spec().description.metadata.userDefined


def test_a_compiled_model_takes_the_package_s_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_model(source: str, destination: str) -> str:
        assert (Path(source) / "Manifest.json").is_file()
        shutil.copytree(Path(source) / "Data", destination)
        return destination

    monkeypatch.setattr(delegate.ct.models.utils, "compile_model", compile_model)
    names = {"inputNames": ["x"], "outputNames": ["y"]}
    identifier, data = delegate.delegate_blob(package(), names, COMPILED)
    assert set(read_blob(data)) == {
        "metadata.json",
        "model.mlmodelc/com.apple.CoreML/model.mlmodel",
        "model.mlmodelc/com.apple.CoreML/weights/weight.bin",
    }
    assert identifier.encode() in bytes(read_blob(data)["metadata.json"])


@pytest.mark.skipif("sys.platform == 'darwin'", reason="macOS compiles models")
def test_compiling_elsewhere_says_what_to_do() -> None:
    with pytest.raises(ConversionError, match="needs macOS"):
        delegate.delegate_blob(package(), {"inputNames": ["x"], "outputNames": ["y"]}, COMPILED)
