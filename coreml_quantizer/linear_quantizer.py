"""`LinearQuantizer`: quantization-aware training with the interface of coremltools."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

from coreml_quantizer.errors import QuantizerError
from coreml_quantizer.process.lifecycle import refuse_prepared
from coreml_quantizer.qat.graphs.exporting import export_for_training
from coreml_quantizer.qat.graphs.finalized import FinalizedGraphModule
from coreml_quantizer.qat.graphs.trainable import TrainableGraphModule
from coreml_quantizer.qat.graphs.wrapping import FINISHER
from coreml_quantizer.quantizer import CoreMLQuantizer
from coreml_quantizer.reporting import Report


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
            config: A configuration that `CoreMLQuantizer` takes; its milestones and algorithm control the training.

        Raises:
            ConfigError: The configuration cannot be honoured; the message lists every reason.
        """
        self._model = model
        self._quantizer = CoreMLQuantizer(config)
        self._prepared: TrainableGraphModule | None = None
        self._finalized = False

    def prepare(self, example_inputs: Tensor | tuple[Any, ...], inplace: bool = False) -> GraphModule:
        """Returns the model with fake quantizers, in training mode.

        Args:
            example_inputs: One input, or a tuple of all positional inputs. Later batches may have another size.
            inplace: Whether the result has the parameters of the model itself, so that an optimizer made before trains
                them. Otherwise they are copies, and the model stays as it is.

        Raises:
            ExportError: torch.export cannot trace the model; the message names the line.
            QuantizerError: The model is prepared already, or in half precision.
            ScopeError: The configuration names modules or types that the model does not have.
        """
        if self._prepared is not None:
            raise QuantizerError(
                "prepare() was called before on this LinearQuantizer. Make a new one to prepare a model again."
            )
        refuse_prepared(self._model)
        inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        model = self._model if inplace else copy.deepcopy(self._model)
        was_training = model.training
        try:
            exported = export_for_training(model.train(), inputs)
        finally:
            model.train(was_training)
        prepared = prepare_qat_pt2e(exported, self._quantizer)
        self._prepared = TrainableGraphModule.of(prepared)
        return self._prepared

    def step(self) -> None:
        """Takes one step of the milestones, if there are any, and makes all ranks of a process group agree on ranges.

        Raises:
            QuantizerError: There is no prepared model, or it was finalized in place.
            CalibrationError: A range is not finite.
        """
        self._require_prepared("step")
        self._quantizer.step()

    def finalize(self, model: GraphModule | None = None, inplace: bool = False) -> GraphModule:
        """Returns the trained model with stored integer weights and quantize/dequantize operators, in eval mode.

        Args:
            model: A copy of the model that `prepare` returned, such as one with averaged weights; None for that model.
            inplace: Whether to convert the prepared model itself, which cannot be used afterwards; otherwise a copy of
                it is converted.

        Raises:
            CalibrationError: Some tensor was never observed.
            QuantizerError: There is no prepared model, it was finalized in place, or `model` is not a copy of it.
        """
        if model is None or self._prepared is None:
            model = self._require_prepared("finalize")
        if not _still_trains(model):
            raise QuantizerError(
                f"finalize(model) was given a {type(model).__name__} that has no fake quantizers. It needs what "
                "prepare() returned, or a copy of that which was not finalized in place; of a wrapped model, its "
                "`.module`."
            )
        target = model if inplace else copy.deepcopy(model)
        target.train(False)
        converted = FinalizedGraphModule.of(convert_pt2e(target))
        self._finalized = self._finalized or target is self._prepared
        return converted

    def report(self) -> Report:
        """Returns a report on every operator: how it is quantized, or why it is not.

        Raises:
            QuantizerError: There is no prepared model, or it was finalized in place.
        """
        return self._quantizer.report(self._require_prepared("report"))

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

    def _require_prepared(self, call: str) -> TrainableGraphModule:
        if self._prepared is None:
            raise QuantizerError(f"{call}() needs a prepared model: call prepare(example_inputs) first.")
        if self._finalized:
            raise QuantizerError(
                f"{call}() needs the prepared model, which finalize(inplace=True) used up. Call {call}() before, or "
                "finalize() without inplace, which converts a copy."
            )
        return self._prepared


def _still_trains(model: object) -> bool:
    """Returns whether `model` is a prepared graph that was not converted.

    Conversion removes the calls of fake quantizers from the graph but leaves their modules, so the calls are checked.
    """
    return isinstance(model, GraphModule) and any(node.target == FINISHER for node in model.graph.nodes)
