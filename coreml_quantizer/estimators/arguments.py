"""Arguments of the range estimators and their intervals, so that configurations are checked before there is a graph."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Argument:
    """A number and the interval it must lie in.

    Attributes:
        default: Its value if a configuration gives none.
        low: Smallest value; excluded if `open_low`.
        high: Largest value.
        open_low: Whether `low` itself is refused.
        whole: Whether it must be an integer.
    """

    default: float
    low: float
    high: float
    open_low: bool = False
    whole: bool = False

    def problem(self, value: object) -> str | None:
        """Returns what is wrong with `value`, None if nothing is."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            above = value > self.low if self.open_low else value >= self.low
            if above and value <= self.high and (not self.whole or value == int(value)):
                return None
        kind = "an integer" if self.whole else "a number"
        bracket = "(" if self.open_low else "["
        return f"must be {kind} in {bracket}{self.low:g}, {self.high:g}]"
