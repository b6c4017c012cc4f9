"""Errors of the host runtime. Every one derives from `HostError`."""

from collections.abc import Iterable

from partitioner.errors import PartitionerError


class HostError(PartitionerError):
    """Base of the errors of the host runtime."""


class ProgramFormatError(HostError):
    """A program cannot be read: it is truncated, corrupt, of another kind, or points outside its package."""


class UnsupportedMilOpError(HostError):
    """A program uses operations that this runtime does not define.

    Attributes:
        missing: The missing operations as ``"type (opset)"``, sorted, each once.
    """

    def __init__(self, missing: Iterable[str]) -> None:
        self.missing = tuple(sorted(set(missing)))
        names = ", ".join(self.missing)
        super().__init__(
            f"the program uses {len(self.missing)} operation(s) that the host runtime does not define: {names}; "
            "define them with partitioner.host.register_op before loading"
        )


class InputError(HostError, RuntimeError, ValueError):
    """An input is missing, unknown, or has the wrong shape or data type; or there is no such function or method.

    Also a `RuntimeError`, which ``MLModel.predict`` raises for these on macOS, and a `ValueError`.
    """


class PolicyError(HostError, ValueError):
    """There is no such precision policy."""


class ExecutionError(HostError, RuntimeError):
    """An operation failed while a program was running.

    Also a `RuntimeError`, which ``MLModel.predict`` raises for these on macOS.
    """


class DelegateUnavailableError(HostError):
    """The native delegate is needed and was not built for this installation."""
