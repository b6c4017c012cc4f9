"""Errors of the lowering; the host runtime's errors derive from the same base."""


class PartitionerError(Exception):
    """Base of every error raised on purpose by this package."""


class CompileSpecError(PartitionerError, ValueError):
    """A compile spec has an unknown key, an unreadable value or contradicts another one."""


class ArgumentError(PartitionerError, TypeError):
    """An argument is of the wrong kind."""


class DeploymentTargetError(PartitionerError, ValueError):
    """The program needs a newer Core ML than the chosen minimum deployment target.

    Attributes:
        node: The name of the graph node that needs it, when a conversion found that node.
    """

    node: str | None = None


class UnsupportedOpError(PartitionerError, NotImplementedError):
    """The program contains operations that Core ML cannot express."""


class ConversionError(PartitionerError, RuntimeError):
    """Core ML Tools failed to convert a partition.

    Attributes:
        node: The name of the graph node that makes the conversion fail, when that is known.
    """

    node: str | None = None


class LoweringError(PartitionerError, RuntimeError):
    """PyTorch or ExecuTorch failed on a program; what they raised is the cause.

    Attributes:
        node: The name of the graph node that the failure is about, when that is known.
    """

    node: str | None = None


class BlobError(PartitionerError, ValueError):
    """A delegate blob is malformed, or the files given for one cannot be stored."""
