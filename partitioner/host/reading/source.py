"""The bytes or the path that users give as a program, and errors for everything else."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from partitioner.host.errors import InputError, ProgramFormatError
from partitioner.host.reading.mil import check_kind
from partitioner.host.reading.packages import parse_model_bytes

Given = memoryview | Path

_BYTES = (bytes, bytearray, memoryview)
_SHOWN_CHARACTERS = 400
# What tells a kind of object by an attribute of it -> what to do with such an object.
_HINTS = {
    "getbuffer": "give its .getvalue()",
    "read": "give its .read()",
    "get_spec": "give an MLModel to host.load(...).predict",
    "SerializeToString": "give the specification of a model, and its weights_dir, to host.load(...).predict",
    "to_executorch": "give to_executorch().buffer",
    "predict": "it is loaded already, call its predict",
}


def bytes_or_path(given: object, accepted: str) -> Given:
    """Returns the bytes of a program, or the path where it lies.

    Args:
        given: Bytes, an object whose ``buffer`` is bytes (as ``to_executorch()`` returns it), or a path.
        accepted: What the caller takes, for messages.

    Raises:
        InputError: It is something else, or an empty path.
        ProgramFormatError: It is no possible path.
    """
    data = given if isinstance(given, _BYTES) else getattr(given, "buffer", None)
    if isinstance(data, _BYTES):
        view = memoryview(data)
        return view.cast("B") if view.c_contiguous and view.nbytes else memoryview(bytes(data))
    if isinstance(given, (str, os.PathLike)):
        return _checked_path(os.fsdecode(given), accepted)
    raise InputError(f"got {_kind(given)}; give {accepted}")


@contextmanager
def naming(given: object) -> Iterator[None]:
    """Prefixes the errors about a file's format with its path; bytes have no name."""
    try:
        yield
    except ProgramFormatError as error:
        if not isinstance(given, Path) or str(given) in str(error):
            raise
        raise ProgramFormatError(f"{given}: {error}") from error.__cause__


def refuse_bare_model(data: memoryview) -> None:
    """Refuses the serialized specification of a model, which is the content of ``.mlmodel`` files.

    Raises:
        ProgramFormatError: It is one.
    """
    try:
        model = parse_model_bytes(data, "")
    except ProgramFormatError:
        return
    if model.specificationVersion < 1 or model.WhichOneof("Type") is None:
        return
    check_kind(model)
    raise ProgramFormatError(
        "this is the bare specification of an ML Program, without its weights; give the .mlpackage folder that it "
        "belongs to to host.load"
    )


def _checked_path(text: str, accepted: str) -> Path:
    if not text:
        raise InputError(f"the path is empty; give {accepted}")
    shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}... ({len(text)} characters)"
    try:
        Path(text).stat()
    except FileNotFoundError:
        raise ProgramFormatError(f"there is no file {shown!r}; check the path") from None
    except OSError as error:
        raise ProgramFormatError(f"cannot read {shown!r}: {error.strerror}; give {accepted}") from None
    except ValueError as error:
        raise ProgramFormatError(f"{shown!r} cannot be a path: {error}; give {accepted}") from None
    return Path(text)


def _kind(given: object) -> str:
    if given is None:
        return "None"
    if isinstance(given, type):
        return f"the class {given.__name__}"
    hint = next((f" ({text})" for name, text in _HINTS.items() if hasattr(given, name)), "")
    return f"an object of type {type(given).__name__}{hint}"
