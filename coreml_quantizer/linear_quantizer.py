"""`LinearQuantizer`: quantization-aware training with the interface of coremltools."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from coremltools.optimize.torch.quantization import LinearQuantizer as StockQuantizer
from coremltools.optimize.torch.quantization import LinearQuantizerConfig
from torch import Tensor, nn
from torch.ao.quantization.quantize_fx import attach_preserved_attrs_to_model
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

from coreml_quantizer.errors import QuantizerError, QuantizerWarning
from coreml_quantizer.process.lifecycle import refuse_prepared
from coreml_quantizer.qat.graphs.exporting import export_for_training
from coreml_quantizer.qat.graphs.finalized import FinalizedGraphModule
from coreml_quantizer.qat.graphs.trainable import TrainableGraphModule
from coreml_quantizer.qat.graphs.whole_modules import WholeModules
from coreml_quantizer.qat.graphs.wrapping import FINISHER
from coreml_quantizer.qat.training_report import TrainingReport, rows_of
from coreml_quantizer.quantizer import CoreMLQuantizer

_TRACING = ("non_traceable_module_names", "preserved_attributes")
"""The fields of a configuration that are about the model, not about numbers; this class honours them itself."""


class LinearQuantizer:
    """A quantizer that trains a model with the rounding that the device will do.

    Example:
        >>> quantizer = LinearQuantizer(model, config)
        >>> model = quantizer.prepare(example_inputs=torch.rand(1, 3, 224, 224), inplace=True)
        >>> for inputs, labels in data:
        ...     loss_fn(model(inputs), labels).backward()
        ...     optimizer.step()
        ...     quantizer.step()
        >>> model = quantizer.finalize(inplace=True)

    The interface is that of `coremltools.optimize.torch.quantization.LinearQuantizer`, so that a script changes only
    one import line. The model is exported by torch.export instead of traced by torch.fx. Transformers therefore train
    too, and the result can be lowered to ExecuTorch or converted by coremltools.
    """

    def __init__(self, model: nn.Module, config: object = None) -> None:
        """Reads and checks the configuration.

        Args:
            model: Any module that torch.export can trace.
            config: A configuration that `CoreMLQuantizer` takes; its milestones and algorithm control the training. The
                modules in `non_traceable_module_names` stay whole and in floating point, and the prepared and the
                finalized model have the model's `preserved_attributes`. None for coremltools' default, which is
                symmetric.

        Raises:
            ConfigError: The configuration cannot be honoured; the message lists every reason.
        """
        self._model = model
        given = LinearQuantizerConfig() if config is None else config
        numbers, (self._whole, self._preserved) = _apart(given)
        self._quantizer = CoreMLQuantizer(numbers)
        self._prepared: TrainableGraphModule | None = None
        self._attributes: dict[str, Any] = {}
        self._finalized = False

    @property
    def supported_modules(self) -> tuple[Any, ...]:
        """The modules and functions that coremltools' class of this name quantizes; this one quantizes more."""
        supported: tuple[Any, ...] = StockQuantizer._supported_modules
        return supported

    def prepare(self, example_inputs: Tensor | tuple[Any, ...], inplace: bool = False) -> GraphModule:
        """Returns the model with fake quantizers, in training mode.

        Args:
            example_inputs: One input, or a tuple of all positional inputs. Later batches may have another size.
            inplace: Whether the result has the parameters of the model itself, so that an optimizer made before trains
                them. Otherwise they are copies, and the model stays as it is.

        A second call warns, and returns what the first one returned.

        Raises:
            ExportError: torch.export cannot trace the model; the message names the line.
            QuantizerError: The model is prepared by another quantizer, or in half precision.
            ScopeError: The configuration names modules or types that the model does not have.
        """
        if self._prepared is not None:
            _warn("prepare() was called before, and does nothing now. Make a new LinearQuantizer to prepare again.")
            return self._prepared
        refuse_prepared(self._model)
        inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        model = self._model if inplace else copy.deepcopy(self._model)
        was_training = model.training
        whole = WholeModules(model, self._whole, inputs)
        try:
            with whole.stubbed(model):
                exported = whole.put_back(export_for_training(model.train(), inputs))
        finally:
            model.train(was_training)
        prepared = prepare_qat_pt2e(exported, self._quantizer)
        self._prepared = TrainableGraphModule.of(prepared)
        kept = {name: getattr(model, name) for name in self._preserved if hasattr(model, name)}
        self._attributes = {name: value for name, value in kept.items() if not isinstance(value, nn.Module)}
        attach_preserved_attrs_to_model(self._prepared, self._attributes)
        return self._prepared

    def step(self) -> None:
        """Takes one step of the milestones, if there are any, and makes all ranks of a process group agree on ranges.

        Before `prepare` it warns and does nothing.

        Raises:
            QuantizerError: The prepared model was finalized in place.
            CalibrationError: A range is not finite.
        """
        if self._is_too_early("step"):
            return
        self._require_prepared("step")
        self._quantizer.step()

    def finalize(self, model: nn.Module | None = None, inplace: bool = False) -> nn.Module:
        """Returns the trained model with stored integer weights and quantize/dequantize operators, in eval mode.

        Before `prepare` it warns, and returns the model as it is.

        Args:
            model: A copy of the model that `prepare` returned, such as one with averaged weights; None for that model.
            inplace: Whether to convert the prepared model itself, which cannot be used afterwards; otherwise a copy of
                it is converted.

        Raises:
            CalibrationError: Some tensor was never observed.
            QuantizerError: The prepared model was finalized in place, or `model` is not a copy of it.
        """
        if self._is_too_early("finalize"):
            return self._model
        if model is None:
            model = self._require_prepared("finalize")
        if not isinstance(model, GraphModule) or not _still_trains(model):
            raise QuantizerError(
                f"finalize(model) was given a {type(model).__name__} that has no fake quantizers. It needs what "
                "prepare() returned, or a copy of that which was not finalized in place; of a wrapped model, its "
                "`.module`."
            )
        target = model if inplace else copy.deepcopy(model)
        target.train(False)
        converted = FinalizedGraphModule.of(convert_pt2e(target))
        attach_preserved_attrs_to_model(converted, self._attributes)
        self._finalized = self._finalized or target is self._prepared
        return converted

    def report(self) -> TrainingReport:
        """Returns statistics of every fake quantizer, with coremltools' columns, and a report on every operator.

        Before `prepare` it is empty.

        Raises:
            QuantizerError: The prepared model was finalized in place.
        """
        if self._prepared is None:
            return TrainingReport({}, None)
        prepared = self._require_prepared("report")
        return TrainingReport(rows_of(prepared), self._quantizer.report(prepared))

    def enable_observer_sync(self) -> None:
        """Does nothing: ranks agree in `step()`, never in a forward pass, so that no rank waits for another one."""

    def disable_observer_sync(self) -> None:
        """Does nothing, for the same reason."""

    @contextmanager
    def calibration(self) -> Iterator[GraphModule]:
        """Keeps the model in eval mode, with observers on and rounding off, while the context is open.

        Yields:
            The prepared model. Afterwards everything except the ranges is as it was before.

        Raises:
            QuantizerError: There is no prepared model, or it was finalized in place.
        """
        prepared = self._require_prepared("calibration")
        with prepared.switched(mode=None, observes=True, quantizes=False):
            yield prepared

    @contextmanager
    def training(self) -> Iterator[GraphModule]:
        """Keeps the model in training mode, with observers and rounding on, while the context is open.

        The milestones have no effect in it.

        Yields:
            The prepared model. Afterwards mode and switches are as they were before.

        Raises:
            QuantizerError: There is no prepared model, or it was finalized in place.
        """
        prepared = self._require_prepared("training")
        with prepared.switched(mode=True, observes=True, quantizes=True):
            yield prepared

    def _is_too_early(self, call: str) -> bool:
        if self._prepared is None:
            _warn(f"{call}() does nothing before prepare(example_inputs) was called.")
        return self._prepared is None

    def _require_prepared(self, call: str) -> TrainableGraphModule:
        if self._prepared is None:
            raise QuantizerError(f"{call}() needs a prepared model: call prepare(example_inputs) first.")
        if self._finalized:
            raise QuantizerError(
                f"{call}() needs the prepared model, which finalize(inplace=True) used up. Call {call}() before, or "
                "finalize() without inplace, which converts a copy."
            )
        return self._prepared


def _warn(message: str) -> None:
    warnings.warn(message, QuantizerWarning, stacklevel=4)


def _apart(config: Any) -> tuple[Any, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Returns a configuration without the fields in `_TRACING`, and their values."""
    if isinstance(config, dict):
        rest: Any = {key: value for key, value in config.items() if key not in _TRACING}
        whole, preserved = (tuple(config.get(name) or ()) for name in _TRACING)
    elif isinstance(config, LinearQuantizerConfig):
        whole, preserved = (tuple(getattr(config, name) or ()) for name in _TRACING)
        rest = copy.copy(config)
        for name in _TRACING:
            setattr(rest, name, [])
    else:
        return config, ((), ())
    return rest, (whole, preserved)


def _still_trains(model: GraphModule) -> bool:
    """Returns whether `model` is a prepared graph that was not converted.

    Conversion removes the calls of fake quantizers from the graph but leaves their modules, so the calls are checked.
    """
    return any(node.target == FINISHER for node in model.graph.nodes)
