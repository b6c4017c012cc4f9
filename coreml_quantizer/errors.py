"""Errors, which share one base class, and warnings. Their messages name what is wrong and what to do about it."""

import difflib
from collections.abc import Iterable


class QuantizerError(Exception):
    """Base class of every error this package raises on purpose."""


class ConfigError(QuantizerError, ValueError):
    """A configuration asks for something that does not exist or that Core ML cannot do."""


class ScopeError(ConfigError):
    """A module name or type of the configuration matches nothing in the model."""


class RuleError(QuantizerError, ValueError):
    """An operator rule is registered twice or is not well formed."""


class CalibrationError(QuantizerError, RuntimeError):
    """Ranges cannot be computed from what the observers saw."""


class ExportError(QuantizerError, RuntimeError):
    """A model cannot be exported."""


class QuantizerWarning(UserWarning):
    """Something in the configuration has no effect here; the message says why."""


def near_matches(name: str, candidates: Iterable[str], limit: int = 3) -> str:
    """Returns `" Did you mean 'a', 'b'?"`, or an empty string if no candidate is close to `name`."""
    close = difflib.get_close_matches(name, sorted(set(candidates)), n=limit, cutoff=0.5)
    if not close:
        return ""
    return " Did you mean " + ", ".join(repr(match) for match in close) + "?"
