"""Checks of configuration fields. Each returns lines on what is wrong, which continue the path of the checked field."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from coreml_quantizer.errors import ConfigError, near_matches
from coreml_quantizer.estimators.arguments import Argument

Check = Callable[[Any], list[str]]
"""A function from the value of a field to lines on what is wrong with it; each continues the name of the field."""


_NO_FIELD = ("=", ":", " ")


def problems(fields: Any, table: Mapping[str, Check]) -> list[str]:
    """Returns what is wrong with a dict of fields, by a table of checks; unknown fields are problems too."""
    if not isinstance(fields, Mapping):
        return [f"={fields!r}: must be a dict with {_list(table)}."]
    found = []
    for name, value in fields.items():
        if name not in table:
            hint = near_matches(str(name), table) or (f" It may have {_list(table)}." if table else " It takes none.")
            found.append(f": there is no field {name!r}.{hint}")
        else:
            found += [f".{name}{line}" for line in table[name](value)]
    return found


def one_of(allowed: tuple[str, ...]) -> Check:
    """Returns a check that a value is one of the `allowed` strings."""

    def check(value: Any) -> list[str]:
        if isinstance(value, str) and value in allowed:
            return []
        return [f"={value!r}: must be one of {_list(allowed)}.{near_matches(str(value), allowed)}"]

    return check


def number(argument: Argument) -> Check:
    """Returns a check that a value is a number in the interval of an estimator's argument."""

    def check(value: Any) -> list[str]:
        problem = argument.problem(value)
        return [] if problem is None else [f"={value!r}: {problem}."]

    return check


def positive(value: Any) -> list[str]:
    """Checks that `value` is an integer above zero."""
    fine = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return [] if fine else [f"={value!r}: must be an integer above zero."]


def wrong_types(config: object, table: Mapping[str, type]) -> list[str]:
    """Returns a line for each field of a dataclass that is neither None nor of its type in `table`."""
    return [
        f".{name}={value!r}: must be a {kind.__name__} or None; {kind.__name__}.from_dict reads a dict."
        for name, kind in table.items()
        if not isinstance(value := getattr(config, name), kind | None)
    ]


def refuse(found: Iterable[str], where: str = "The configuration") -> None:
    """Refuses a configuration in which problems were found.

    Raises:
        ConfigError: There are problems; the message lists them all.
    """
    # What is wrong with all of it has no field in front.
    lines = [f"configuration{line}" if line.startswith(_NO_FIELD) else line.lstrip(".") for line in found]
    if lines:
        raise ConfigError(f"{where} cannot be honoured:\n  " + "\n  ".join(lines))


def _list(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
