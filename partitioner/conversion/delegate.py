"""The bytes that a delegate holds, made from the files of an mlpackage."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coremltools as ct

from partitioner.errors import ConversionError
from partitioner.format.blob import write_blob
from partitioner.format.package import identifier, module_files
from partitioner.format.paths import COMPILED_DIRECTORY, MODEL_DIRECTORY
from partitioner.options.compile_specs import ModelType


def delegate_blob(package: Mapping[str, bytes], names: Mapping[str, Any], model_type: ModelType) -> tuple[str, bytes]:
    """Builds the delegate blob of a model.

    Args:
        package: The files of the mlpackage.
        names: The metadata besides the identifier: ``inputNames`` and ``outputNames``, or ``methods``.
        model_type: Whether to store the package as it is, or to compile it on this machine, which needs macOS.

    Returns:
        The model's identifier and the blob.

    Raises:
        ConversionError: Core ML cannot compile the model.
    """
    model, directory = package, MODEL_DIRECTORY
    if model_type == ModelType.COMPILED_MODEL:
        model, directory = _compile(package), COMPILED_DIRECTORY
    return identifier(model, names), write_blob(module_files(model, names, directory))


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Writes files into a directory, at their relative paths."""
    for path, content in files.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _compile(package: Mapping[str, bytes]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="coreml_") as name:
        source, compiled = Path(name) / MODEL_DIRECTORY, Path(name) / COMPILED_DIRECTORY
        write_files(source, package)
        try:
            ct.models.utils.compile_model(str(source), str(compiled))
        except Exception as error:
            raise ConversionError(
                f"Core ML could not compile the model here ({error}); compiling needs macOS. Use "
                "CoreMLBackend.MODEL_TYPE.MODEL and let the device compile it"
            ) from error
        paths = (path for path in compiled.rglob("*") if path.is_file())
        return {path.relative_to(compiled).as_posix(): path.read_bytes() for path in paths}
