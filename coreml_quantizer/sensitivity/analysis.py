"""The sensitivity analysis: quantizes one module at a time, or all but one, and scores the model."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from coreml_quantizer.calibration.batches import run_batch
from coreml_quantizer.calibration.progress import shown
from coreml_quantizer.errors import CalibrationError, ScopeError, near_matches
from coreml_quantizer.sensitivity.result import Mode, ModuleSensitivity, Sensitivity
from coreml_quantizer.sensitivity.switches import SwitchedGraph, inside

Evaluate = Callable[[GraphModule], float]


def analyze_sensitivity(
    calibrated: GraphModule,
    batches: Iterable[Any] | None = None,
    *,
    evaluate: Evaluate | None = None,
    mode: Mode = "only",
    modules: Iterable[str] | None = None,
    max_batches: int | None = None,
    inputs: Callable[[Any], Any] | None = None,
    progress: bool = True,
) -> Sensitivity:
    """Measures how much accuracy the quantization of each module costs, one module at a time.

    The model is converted once. The measurement of each module takes one run over the batches.

    Example:
        >>> prepared = prepare_pt2e(exported.module(), CoreMLQuantizer(QuantizerConfig()))
        >>> calibrate(prepared, loader)
        >>> found = analyze_sensitivity(prepared, loader, max_batches=8)
        >>> print(found.to_text())
        >>> config = QuantizerConfig(skip=Skip(modules=found.most_sensitive(2)))

    Args:
        calibrated: The graph that `prepare_pt2e` returned, calibrated (weight-only models need no calibration) and not
            converted. It is not changed.
        batches: Inputs as for `calibrate`. The outputs for them are compared with those of the model in floating
            point. The score is the signal-to-quantization-noise ratio in dB, over all floating-point outputs and
            batches.
        evaluate: A function to use instead of `batches`. It takes the model, which is called as `calibrated` is, and
            returns a score, such as an accuracy. A higher score is better.
        mode: "only" quantizes one module alone; "all_but" quantizes all but one, which also shows how errors add up.
        modules: Module paths to measure, each with everything inside; None for all modules that have their own
            quantized operators.
        max_batches: How many of `batches` to use; None for all.
        inputs: Takes a batch and returns the inputs of the model, such as `lambda batch: batch[0]`.
        progress: Whether to show a bar on standard error, if that is a terminal.

    Returns:
        A score for each module, the most sensitive first.

    Raises:
        CalibrationError: The model is not calibrated or is converted already, or there are no batches.
        ScopeError: `modules` names a module without quantized operators.
        ValueError: Neither or both of `batches` and `evaluate` are given, or `mode` is neither of the two.
    """
    _check(batches, evaluate, mode)
    switched = SwitchedGraph(calibrated)
    measured = _measured(switched.modules(), modules)
    with torch.no_grad():
        if evaluate is None:
            assert batches is not None
            given = list(itertools.islice(batches, max_batches))
            evaluate = _Sqnr(switched.switch(lambda _: False), given, inputs)
        float_score = evaluate(switched.switch(lambda _: False))
        quantized_score = evaluate(switched.switch(lambda _: True))
        paths = shown(measured, len(measured), 0, progress, "Analyzing")
        scores = [ModuleSensitivity(path, evaluate(_with_one(switched, path, mode))) for path in paths]
    scores.sort(key=lambda found: found.score, reverse=mode == "all_but")
    metric = _Sqnr.NAME if isinstance(evaluate, _Sqnr) else "score"
    return Sensitivity(mode, metric, float_score, quantized_score, tuple(scores))


def _check(batches: Iterable[Any] | None, evaluate: Evaluate | None, mode: Mode) -> None:
    if (batches is None) == (evaluate is None):
        raise ValueError("Give either batches, to compare outputs, or evaluate, a function of the model.")
    if mode not in ("only", "all_but"):
        raise ValueError(f"mode={mode!r}: must be 'only' or 'all_but'.")


def _with_one(switched: SwitchedGraph, path: str, mode: Mode) -> GraphModule:
    """Returns the model with only the module at `path` quantized, or with all modules but that one."""
    chosen = {other for other in switched.modules() if inside(other, (path,)) is (mode == "only")}
    return switched.switch(chosen.__contains__)


class _Sqnr:
    """The signal-to-quantization-noise ratio of a model's outputs, in dB, summed in float64."""

    NAME = "SQNR (dB)"

    def __init__(self, model: GraphModule, batches: Sequence[Any], inputs: Callable[[Any], Any] | None) -> None:
        if not batches:
            raise CalibrationError("There are no batches; the analysis needs at least one.")
        self._batches, self._inputs = batches, inputs
        self._wanted = list(self._outputs(model))
        self._signal = sum(float(value.double().square().sum()) for values in self._wanted for value in values)

    def __call__(self, model: GraphModule) -> float:
        noise = 0.0
        for values, wanted in zip(self._outputs(model), self._wanted, strict=True):
            for value, reference in zip(values, wanted, strict=True):
                noise += float((value.double() - reference.double()).square().sum())
        return 10 * math.log10(self._signal / noise) if noise and self._signal else math.inf

    def _outputs(self, model: GraphModule) -> Iterator[list[Tensor]]:
        """Yields the floating-point outputs for each batch."""
        for number, batch in enumerate(self._batches):
            leaves = tree_leaves(run_batch(model, number, batch, self._inputs))
            yield [leaf.clone() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _measured(quantized: Sequence[str], wanted: Iterable[str] | None) -> list[str]:
    """Returns the paths to measure: those in `wanted`, or all but that of the whole model."""
    if wanted is None:
        return [path for path in quantized if path]
    asked = list(dict.fromkeys(wanted))
    problems = [
        f"modules: nothing in {path!r} is quantized.{near_matches(path, quantized)}"
        for path in asked
        if not any(inside(other, (path,)) for other in quantized)
    ]
    if problems:
        raise ScopeError("The analysis is asked for what it cannot switch:\n  " + "\n  ".join(problems))
    return asked
