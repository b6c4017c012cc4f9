"""Checks of configuration fields. Each returns lines that continue the path of the field it is about."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from coreml_quantizer.errors import ConfigError, near_matches
from coreml_quantizer.estimators.arguments import Argument

Check = Callable[[Any], list[str]]
"""Takes the value of a field and returns what is wrong with it; each line starts behind the name of the field."""


_NO_FIELD = ("=", ":", " ")


def problems(fields: Any, table: Mapping[str, Check]) -> list[str]:
    """Checks a dict of fields against a table; unknown fields are problems too."""
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
    """One of a few strings."""

    def check(value: Any) -> list[str]:
        if isinstance(value, str) and value in allowed:
            return []
        return [f"={value!r}: must be one of {_list(allowed)}.{near_matches(str(value), allowed)}"]

    return check


def number(argument: Argument) -> Check:
    """Returns a number in the interval that an estimator asks for."""

    def check(value: Any) -> list[str]:
        problem = argument.problem(value)
        return [] if problem is None else [f"={value!r}: {problem}."]

    return check


def positive(value: Any) -> list[str]:
    """Returns an integer above zero."""
    fine = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return [] if fine else [f"={value!r}: must be an integer above zero."]


def wrong_types(config: object, table: Mapping[str, type]) -> list[str]:
    """Fields of a dataclass that are neither None nor of their type."""
    return [
        f".{name}={value!r}: must be a {kind.__name__} or None; {kind.__name__}.from_dict reads a dict."
        for name, kind in table.items()
        if not isinstance(value := getattr(config, name), kind | None)
    ]


def refuse(found: Iterable[str], where: str = "The configuration") -> None:
    """Raises when there are problems.

    Raises:
        ConfigError: Lists them all.
    """
    # What is wrong with all of it has no field in front.
    lines = [f"configuration{line}" if line.startswith(_NO_FIELD) else line.lstrip(".") for line in found]
    if lines:
        raise ConfigError(f"{where} cannot be honoured:\n  " + "\n  ".join(lines))


def _list(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
