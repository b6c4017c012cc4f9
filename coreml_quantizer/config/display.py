"""A short representation of configurations."""

from dataclasses import MISSING, fields
from typing import Any


class ShortRepr:
    """A `repr` with only those fields of a dataclass that differ from their defaults.

    Evaluating it gives an equal object.
    """

    def __repr__(self) -> str:
        shown = [
            f"{item.name}={getattr(self, item.name)!r}"
            for item in fields(self)  # type: ignore[arg-type]
            if getattr(self, item.name) != _default(item)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


def _default(item: Any) -> object:
    return item.default if item.default_factory is MISSING else item.default_factory()
