"""Opens the sources of `load`: a ``.pte``, a delegate blob, a package directory, an ``MLModel`` or its message."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from partitioner.errors import BlobError
from partitioner.format.blob import read_blob
from partitioner.format.paths import COMPILED_DIRECTORY, MANIFEST_FILE, METADATA_FILE, MODEL_DIRECTORY
from partitioner.format.reference import read_reference
from partitioner.host.errors import InputError, ProgramFormatError
from partitioner.host.mil.model import Feature, Function, MilProgram
from partitioner.host.reading.mil import check_kind, parse_model
from partitioner.host.reading.packages import (
    ModelSource,
    directory_reader,
    folder_source,
    map_file,
    mapping_reader,
    package_source,
    parse_model_bytes,
)
from partitioner.host.reading.source import bytes_or_path, naming, refuse_bare_model

Source: TypeAlias = "bytes | bytearray | memoryview | str | os.PathLike[str] | Any"

_ACCEPTED = (
    ".pte bytes (`program.buffer` of `to_executorch()`), the bytes of a delegate blob, the path of a .pte file or an "
    ".mlpackage folder, an MLModel, or a specification with its weights_dir"
)
_PACKAGE_PREFIX = f"{MODEL_DIRECTORY}/"
_COMPILED_PREFIX = f"{COMPILED_DIRECTORY}/"
_PTE_MAGIC = b"ET"
_MODEL_MESSAGE = "CoreML.Specification.Model"


def open_program(source: Source, weights_dir: str | os.PathLike[str] | None = None) -> MilProgram:
    """Reads a program from any source that `partitioner.host.load` takes.

    Raises:
        ProgramFormatError: The source is unreadable or no ML Program.
        InputError: The source is of another kind.
    """
    if getattr(getattr(source, "DESCRIPTOR", None), "full_name", None) == _MODEL_MESSAGE:
        message: Any = source
        folder = None if weights_dir is None else Path(weights_dir)
        model = parse_model_bytes(memoryview(message.SerializeToString()), "specification")
        return _parse(folder_source(model, folder))
    if weights_dir is not None:
        raise InputError("weights_dir belongs to a specification; every other source brings its own weights")
    if not isinstance(source, type) and hasattr(source, "get_spec") and hasattr(source, "weights_dir"):
        folder = Path(source.weights_dir) if source.weights_dir else None
        return _parse(folder_source(source.get_spec(), folder))
    given = bytes_or_path(source, _ACCEPTED)
    with naming(given):
        return _from_path(given) if isinstance(given, Path) else _from_bytes(given)


def _from_path(path: Path) -> MilProgram:
    if not path.is_dir():
        return _from_bytes(map_file(path))
    if not (path / MANIFEST_FILE).is_file():
        raise ProgramFormatError(
            "the directory has no Manifest.json; give the .mlpackage folder itself (compiled .mlmodelc folders run on "
            "macOS only)"
        )
    return _parse(package_source(directory_reader(path)))


def _from_bytes(data: memoryview) -> MilProgram:
    if bytes(data[4:6]) == _PTE_MAGIC:
        return _from_pte(data)
    return _from_blob(data, {})


def _from_pte(data: memoryview) -> MilProgram:
    from partitioner.host.pte.reader import delegate_blobs

    blobs = list(delegate_blobs(data))
    if len(blobs) != 1:
        raise ProgramFormatError(
            f"the .pte holds {len(blobs)} Core ML delegates; only a program with exactly one can be loaded this way, "
            "use partitioner.host.run for the others"
        )
    blob, named_data = blobs[0]
    return _from_blob(memoryview(blob), named_data)


def _from_blob(data: memoryview, named_data: Mapping[str, Any]) -> MilProgram:
    data, function = _followed(data, named_data)
    try:
        files = read_blob(data)
    except BlobError as error:
        refuse_bare_model(data)
        reason = str(error).removeprefix("not a delegate blob: ")
        raise ProgramFormatError(f"not a .pte program, and not a delegate blob: {reason}; give {_ACCEPTED}") from None
    if not any(path.startswith(_PACKAGE_PREFIX) for path in files):
        compiled = any(path.startswith(_COMPILED_PREFIX) for path in files)
        hint = "it holds a compiled model, which only macOS can run" if compiled else f"it holds {list(files)}"
        raise ProgramFormatError(f"the delegate blob has no {_PACKAGE_PREFIX[:-1]}: {hint}")
    program = _parse(package_source(mapping_reader(files, _PACKAGE_PREFIX)))
    return _with_metadata(program, files, function)


def _followed(data: memoryview, named_data: Mapping[str, Any]) -> tuple[memoryview, str | None]:
    """Returns the blob that a delegate holds or refers to, and the name of the function to run, if it gives one."""
    try:
        reference = read_reference(data)
    except BlobError as error:
        raise ProgramFormatError(str(error)) from None
    if reference is None:
        return data, None
    if reference.key not in named_data:
        raise ProgramFormatError(
            f"the delegate refers to named data {reference.key!r}; the program has {sorted(named_data)}"
        )
    return memoryview(named_data[reference.key]), reference.function


def _with_metadata(program: MilProgram, files: Mapping[str, memoryview], function: str | None) -> MilProgram:
    """Sorts inputs and outputs into the order that the blob's metadata gives."""
    if METADATA_FILE not in files:
        raise ProgramFormatError("the delegate blob has no metadata.json")
    metadata = _read_json(files[METADATA_FILE], METADATA_FILE)
    per_method = metadata.get("methods", {})
    functions = {name: _reordered(entry, per_method.get(name, metadata)) for name, entry in program.functions.items()}
    default = function or program.default_function
    if default not in functions:
        raise ProgramFormatError(f"the delegate names the function {default!r}; the model has {sorted(functions)}")
    return MilProgram(functions, default)


def _reordered(function: Function, metadata: Mapping[str, Any]) -> Function:
    states = {feature.name for feature in function.states}
    inputs = [name for name in metadata.get("inputNames", _names(function.inputs)) if name not in states]
    outputs = metadata.get("outputNames", _names(function.outputs))
    return replace(
        function,
        inputs=_select(function.inputs, inputs, "inputNames"),
        outputs=_select(function.outputs, outputs, "outputNames"),
    )


def _names(features: Sequence[Feature]) -> list[str]:
    return [feature.name for feature in features]


def _select(features: Sequence[Feature], names: Sequence[str], field: str) -> tuple[Feature, ...]:
    by_name = {feature.name: feature for feature in features}
    if not isinstance(names, list) or any(not isinstance(name, str) or name not in by_name for name in names):
        raise ProgramFormatError(f"metadata.json: {field} {names} do not match the model's {sorted(by_name)}")
    return tuple(by_name[name] for name in names)


def _read_json(data: memoryview, what: str) -> dict[str, Any]:
    try:
        content = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise ProgramFormatError(f"{what} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ProgramFormatError(f"{what} is not a JSON object")
    return content


def _parse(source: ModelSource) -> MilProgram:
    check_kind(source.model)
    try:
        return parse_model(source.model, source.open_weights)
    except ProgramFormatError as error:
        raise ProgramFormatError(f"{error}; convert the model again, or copy it again if it was transferred") from None
