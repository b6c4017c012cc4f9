"""The protobuf classes of Core ML models, without the cost of importing all of coremltools.

Importing ``coremltools`` takes seconds and logs warnings about its optional parts. Its ``proto`` package needs none of
that, so it is loaded on its own under a private name. The classes are the very same objects as the ones that
``coremltools.proto`` gives: protobuf keeps one class per message descriptor.
"""

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

_PRIVATE_NAME = "_partitioner_host_coremltools_proto"


@cache
def model_proto() -> ModuleType:
    """Returns the module ``Model_pb2``."""
    return _load("Model_pb2")


@cache
def mil_proto() -> ModuleType:
    """Returns the module ``MIL_pb2``."""
    return _load("MIL_pb2")


@cache
def feature_types_proto() -> ModuleType:
    """Returns the module ``FeatureTypes_pb2``."""
    return _load("FeatureTypes_pb2")


def _load(name: str) -> ModuleType:
    if "coremltools" in sys.modules:
        return importlib.import_module(f"coremltools.proto.{name}")
    if _PRIVATE_NAME not in sys.modules:
        _load_package()
    return importlib.import_module(f"{_PRIVATE_NAME}.{name}")


def _load_package() -> None:
    found = importlib.util.find_spec("coremltools")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("coremltools is not installed; `pip install coremltools` provides its proto package")
    folder = Path(found.submodule_search_locations[0]) / "proto"
    spec = importlib.util.spec_from_file_location(
        _PRIVATE_NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"cannot load the protobuf classes of coremltools from {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_PRIVATE_NAME] = module
    spec.loader.exec_module(module)
