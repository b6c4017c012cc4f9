"""The result of a sensitivity analysis."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from coreml_quantizer.reporting.tables import render
from coreml_quantizer.sensitivity.switches import inside

Mode = Literal["only", "all_but"]

_MEANING = {
    "only": "with nothing but this module quantized; the lowest cost most",
    "all_but": "with all but this module quantized; the highest gain most by leaving it in floating point",
}


@dataclass(frozen=True)
class ModuleSensitivity:
    """The sensitivity of one module.

    Attributes:
        module: Path of the module; everything inside is measured with it, as in an entry of a configuration.
        score: The score of the model with only this module quantized, or with all but this one.
    """

    module: str
    score: float


@dataclass(frozen=True)
class Sensitivity:
    """The accuracy that the quantization of each module costs.

    Attributes:
        mode: "only": each module was quantized alone. "all_but": only this one was left in floating point.
        metric: What a score is: "SQNR (dB)" of the outputs, or "score", from the caller's own function. More is better.
        float_score: Score with nothing quantized; infinite for an SQNR.
        quantized_score: Score with everything quantized that the configuration quantizes.
        modules: The modules, the most sensitive first.
    """

    mode: Mode
    metric: str
    float_score: float
    quantized_score: float
    modules: tuple[ModuleSensitivity, ...]

    def most_sensitive(self, count: int, containers: bool = False) -> tuple[str, ...]:
        """Returns the paths of the `count` most sensitive modules, none inside another, for `Skip(modules=...)`.

        Args:
            count: How many to return; fewer where fewer were measured.
            containers: Whether to take modules, too, that contain other measured modules. The score of such a module
                is that of everything inside, so that a whole encoder often comes first.

        Raises:
            ValueError: `count` is negative.
        """
        if count < 0:
            raise ValueError(f"count={count}: must not be negative.")
        around = {path for found in self.modules for path in _around(found.module)}
        chosen: list[str] = []
        for found in self.modules:
            overlaps = inside(found.module, chosen) or any(inside(path, (found.module,)) for path in chosen)
            if len(chosen) < count and not overlaps and (containers or found.module not in around):
                chosen.append(found.module)
        return tuple(chosen)

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as dicts, lists, strings and numbers; None for an infinite score."""
        return {
            "mode": self.mode,
            "metric": self.metric,
            "float_score": _finite(self.float_score),
            "quantized_score": _finite(self.quantized_score),
            "modules": [{**asdict(found), "score": _finite(found.score)} for found in self.modules],
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """Returns the result as JSON, and writes it to `path` if given."""
        text = json.dumps(self.to_dict(), indent=2)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def to_text(self) -> str:
        """Returns a table with a line for every module."""
        rows = [(f"{found.score:.2f}", found.module) for found in self.modules]
        footer = (
            f"{self.metric} {_MEANING[self.mode]}.",
            f"All quantized: {self.quantized_score:.2f}. Nothing quantized: {self.float_score:.2f}.",
        )
        return render((self.metric, "module"), rows, footer)


def _around(path: str) -> Iterator[str]:
    """Yields the paths of the modules around `path`."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _finite(score: float) -> float | None:
    return score if math.isfinite(score) else None
