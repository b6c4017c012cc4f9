"""Packages that hold a program: an ``.mlpackage`` directory, the files of a delegate blob, or an ``MLModel``."""

import json
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from partitioner.format.paths import MANIFEST_FILE
from partitioner.host.errors import ProgramFormatError
from partitioner.host.reading.protos import model_proto
from partitioner.host.reading.weights import WeightFile

ReadFile = Callable[[str], memoryview]
_MODEL_PATH = "@model_path/"


@dataclass(frozen=True)
class ModelSource:
    """A model message, and a function that opens its weight files."""

    model: Any
    open_weights: Callable[[str], WeightFile]


def package_source(read: ReadFile) -> ModelSource:
    """Returns the model of a package.

    Args:
        read: Gives the bytes of a file by its POSIX path inside the package.

    Raises:
        ProgramFormatError: The manifest or the model is missing or unreadable.
    """
    model_path = _root_model_path(read(MANIFEST_FILE))
    model = parse_model_bytes(read(str(model_path)), str(model_path))
    folder = model_path.parent
    return ModelSource(model, _weight_opener(lambda name: read(str(folder / name))))


def folder_source(model: Any, folder: Path | None) -> ModelSource:
    """Returns a model message whose weight files lie in ``folder`` (the package's ``weights`` directory)."""

    def read(name: str) -> memoryview:
        path = PurePosixPath(name)
        if folder is None or path.parts[0] != "weights":
            raise ProgramFormatError(f"the program names the weight file {name!r}; the model has no weights directory")
        return directory_reader(folder)(str(PurePosixPath(*path.parts[1:])))

    return ModelSource(model, _weight_opener(read))


def directory_reader(root: Path) -> ReadFile:
    """Reads files below ``root`` by mapping them into memory."""
    base = root.resolve()

    def read(name: str) -> memoryview:
        path = (base / check_relative(name)).resolve()
        if not path.is_relative_to(base):
            raise ProgramFormatError(f"{name!r} leads outside {root}")
        return map_file(path)

    return read


def mapping_reader(files: Mapping[str, memoryview], prefix: str) -> ReadFile:
    """Reads the files of a mapping whose paths start with ``prefix``."""

    def read(name: str) -> memoryview:
        path = f"{prefix}{check_relative(name)}"
        if path not in files:
            raise ProgramFormatError(f"{path!r} is missing; the blob holds {sorted(files)}")
        return files[path]

    return read


def map_file(path: Path) -> memoryview:
    """Maps a file into memory, copy on write.

    Raises:
        ProgramFormatError: The file is missing or unreadable.
    """
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except OSError as error:
        raise ProgramFormatError(f"cannot read {path}: {error.strerror}; copy or save it again") from None


def check_relative(name: str) -> PurePosixPath:
    """Returns a path that stays inside its root.

    Raises:
        ProgramFormatError: The path is empty, absolute or climbs.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in name or "\\" in name:
        raise ProgramFormatError(f"invalid path {name!r} in the package: it must be relative and stay inside")
    return path


def parse_model_bytes(data: memoryview, where: str) -> Any:
    """Parses a serialized ``Model`` message.

    Raises:
        ProgramFormatError: The bytes are not such a message.
    """
    from google.protobuf.message import DecodeError

    model = model_proto().Model()
    try:
        model.ParseFromString(bytes(data))
    except DecodeError as error:
        raise ProgramFormatError(f"{where}: not a Core ML model: {error}") from None
    return model


def _root_model_path(manifest: memoryview) -> PurePosixPath:
    try:
        content = json.loads(bytes(manifest))
        path = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProgramFormatError(
            f"Manifest.json names no root model ({type(error).__name__}: {error}); "
            "save the package again, or copy it again"
        ) from None
    if not isinstance(path, str):
        raise ProgramFormatError(f"Manifest.json: the root model's path is {path!r}")
    return PurePosixPath("Data") / check_relative(path)


def _weight_opener(read: ReadFile) -> Callable[[str], WeightFile]:
    @cache
    def open_weights(name: str) -> WeightFile:
        if not name.startswith(_MODEL_PATH):
            raise ProgramFormatError(f"weight file {name!r} does not start with {_MODEL_PATH!r}")
        path = str(check_relative(name.removeprefix(_MODEL_PATH)))
        return WeightFile(read(path), path)

    return open_weights
