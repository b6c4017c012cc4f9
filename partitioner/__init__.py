"""Lowering of PyTorch programs to Core ML delegates, and a host runtime for them.

Public names: `lower`, `LoweredProgram`, `CoreMLPartitioner`, `CoreMLBackend`, `MULTIMETHOD_WEIGHT_SHARING_STRATEGY` and
the subpackage `host`.
They are loaded on first use, so that `partitioner.host` works without the lowering's dependencies.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from partitioner import host as host
    from partitioner.backend import CoreMLBackend as CoreMLBackend
    from partitioner.lowered_program import LoweredProgram as LoweredProgram
    from partitioner.lowered_program import lower as lower
    from partitioner.partitioner import CoreMLPartitioner as CoreMLPartitioner
    from partitioner.stock import MULTIMETHOD_WEIGHT_SHARING_STRATEGY as MULTIMETHOD_WEIGHT_SHARING_STRATEGY

__all__ = [
    "MULTIMETHOD_WEIGHT_SHARING_STRATEGY",
    "CoreMLBackend",
    "CoreMLPartitioner",
    "LoweredProgram",
    "host",
    "lower",
]

_SOURCES = {
    "CoreMLBackend": ("partitioner.backend", "CoreMLBackend"),
    "CoreMLPartitioner": ("partitioner.partitioner", "CoreMLPartitioner"),
    "MULTIMETHOD_WEIGHT_SHARING_STRATEGY": ("partitioner.stock", "MULTIMETHOD_WEIGHT_SHARING_STRATEGY"),
    "LoweredProgram": ("partitioner.lowered_program", "LoweredProgram"),
    "host": ("partitioner.host", None),
    "lower": ("partitioner.lowered_program", "lower"),
}


def __getattr__(name: str) -> Any:
    if name not in _SOURCES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module_name, attribute = _SOURCES[name]
    module = import_module(module_name)
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
