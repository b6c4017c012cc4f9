"""A runtime for Core ML programs on machines without Core ML.

`load` reads a program and returns a `Program` with ``predict`` and ``run``; `run` and `enable` execute whole ``.pte``
files through ExecuTorch's runtime. Precision is always a named policy, see `policies`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from partitioner.host.agreement import Agreement as Agreement
    from partitioner.host.agreement import Distance as Distance
    from partitioner.host.agreement import measure_agreement as measure_agreement
    from partitioner.host.comparison import Spread as Spread
    from partitioner.host.comparison import compare_policies as compare_policies
    from partitioner.host.custom_ops import register_op as register_op
    from partitioner.host.errors import DelegateUnavailableError as DelegateUnavailableError
    from partitioner.host.errors import ExecutionError as ExecutionError
    from partitioner.host.errors import HostError as HostError
    from partitioner.host.errors import InputError as InputError
    from partitioner.host.errors import PolicyError as PolicyError
    from partitioner.host.errors import ProgramFormatError as ProgramFormatError
    from partitioner.host.errors import UnsupportedMilOpError as UnsupportedMilOpError
    from partitioner.host.execution.policy import Policy as Policy
    from partitioner.host.execution.policy import policies as policies
    from partitioner.host.execution.tracing import OpTrace as OpTrace
    from partitioner.host.executorch.runtime import enable as enable
    from partitioner.host.executorch.runtime import run as run
    from partitioner.host.loading import Program as Program
    from partitioner.host.loading import load as load
    from partitioner.host.mil.model import Opset as Opset
    from partitioner.host.patching import patch_coremltools as patch_coremltools

_SOURCES = {
    "Agreement": "agreement",
    "Distance": "agreement",
    "measure_agreement": "agreement",
    "Spread": "comparison",
    "compare_policies": "comparison",
    "DelegateUnavailableError": "errors",
    "ExecutionError": "errors",
    "HostError": "errors",
    "InputError": "errors",
    "PolicyError": "errors",
    "ProgramFormatError": "errors",
    "UnsupportedMilOpError": "errors",
    "Program": "loading",
    "load": "loading",
    "patch_coremltools": "patching",
    "Policy": "execution.policy",
    "policies": "execution.policy",
    "Opset": "mil.model",
    "register_op": "custom_ops",
    "enable": "executorch.runtime",
    "run": "executorch.runtime",
    "OpTrace": "execution.tracing",
}

__all__ = [
    "Agreement",
    "DelegateUnavailableError",
    "Distance",
    "ExecutionError",
    "HostError",
    "InputError",
    "OpTrace",
    "Opset",
    "Policy",
    "PolicyError",
    "Program",
    "ProgramFormatError",
    "Spread",
    "UnsupportedMilOpError",
    "compare_policies",
    "enable",
    "load",
    "measure_agreement",
    "patch_coremltools",
    "policies",
    "register_op",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _SOURCES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_SOURCES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
