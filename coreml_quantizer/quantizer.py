"""`CoreMLQuantizer`: the torchao quantizer for Core ML."""

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantizer import Quantizer

from coreml_quantizer import composition, presets, torchao_patches
from coreml_quantizer.calibration.wrapping import wrap_for_calibration
from coreml_quantizer.config import read_config
from coreml_quantizer.errors import QuantizerError
from coreml_quantizer.estimators import RangeObserver
from coreml_quantizer.graph.inlining import inline_contexts
from coreml_quantizer.graph.lone_batch_norm import rewrite_lone_batch_norms
from coreml_quantizer.graph.shared_folding import refuse_wrong_folding
from coreml_quantizer.graph.stochastic_depth import mark_stochastic_depth
from coreml_quantizer.placement import prepare_kind
from coreml_quantizer.placement.annotator import annotate
from coreml_quantizer.placement.sharing import Place
from coreml_quantizer.process.gc_pause import postpone_collection
from coreml_quantizer.process.lifecycle import refuse_prepared, refuse_quantized
from coreml_quantizer.process.torchao_cache import release_earlier_models
from coreml_quantizer.qat.graphs.hiding import hide, reveal
from coreml_quantizer.qat.graphs.wrapping import wrap_for_training
from coreml_quantizer.qat.steps.trainee import Trainee
from coreml_quantizer.reporting import Report, make_report
from coreml_quantizer.rules import rules

torchao_patches.apply()


class CoreMLQuantizer(Quantizer):
    """Annotates an exported graph for Core ML, for torchao's `prepare_pt2e` and `convert_pt2e`.

    Example:
        >>> quantizer = CoreMLQuantizer(config)
        >>> prepared = prepare_pt2e(torch.export.export(model, inputs).module(), quantizer)
        >>> for batch in calibration_data:
        ...     prepared(batch)
        >>> quantized = convert_pt2e(prepared)

    Constants that stay in floating point (biases, norm weights, scalar factors) are rounded to float16 in the graph, as
    Core ML stores them, so that the converted graph predicts the results of the device. The model that was exported is
    not changed.

    Weight-only configurations (`activation_dtype=torch.float32`) convert without any calibration sample.

    A quantizer keeps nothing of the graphs it prepared: it can be reused, copied and pickled.

    What another quantizer has annotated stays as it is, so that quantizers can be composed, as by torchao's
    `ComposableQuantizer`.
    """

    def __init__(self, config: object = None) -> None:
        """Reads and checks the configuration.

        Args:
            config: A `QuantizerConfig`, a `coremltools.optimize.torch.quantization.LinearQuantizerConfig`, a dict of
                the fields of either, the name of a preset such as "w4_block32", or None for the preset "w8a8".

        Raises:
            ConfigError: The configuration cannot be honoured; the message lists every reason.
        """
        super().__init__()
        self.config = config
        preset = "w8a8" if config is None else config
        self._policy = read_config(presets.named(preset) if isinstance(preset, str) else preset)
        self._training: Trainee | None = None

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Removes nodes that no output needs, and rewrites gradient modes, lone batch norms and stochastic depth.

        It changes the graph in place. Gradient modes are inlined. torchao calls it before `annotate`.

        Raises:
            QuantizerError: `model` is prepared or quantized already, or torchao has folded batch norms wrongly.
        """
        release_earlier_models()
        postpone_collection(len(model.graph.nodes))
        refuse_prepared(model)
        refuse_quantized(model)
        refuse_wrong_folding(model)
        composition.forget_earlier(model)
        inline_contexts(model)
        mark_stochastic_depth(model)
        # Parameters stay, read or not: tied ones have a name each.
        model.graph.eliminate_dead_code(lambda node: node.op == "get_attr" or node.is_impure())
        rewrite_lone_batch_norms(model)
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotates `model` in place and returns it.

        Raises:
            ScopeError: The configuration names modules or types that `model` does not have.
        """
        placement = annotate(model, self._policy, rules)
        composition.leave(model, placement, hide(model))
        prepare_kind.plant(model)
        return model

    def validate(self, model: GraphModule) -> None:
        """Does nothing: the configuration is checked when it is read, and when it is matched to a model."""

    def prepare_obs_or_fq_callback(
        self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[Place, torch.nn.Module]
    ) -> None:
        """Inserts observers for calibration, or fake quantizers for training; torchao calls it.

        Raises:
            QuantizerError: `prepare_pt2e` called with a model that was exported in training mode, or
                `prepare_qat_pt2e` with one in half precision.
        """
        annotated = composition.take(model)
        if annotated is None:
            return
        trains = prepare_kind.detect(model, edge_or_node_to_obs_or_fq)
        observers = composition.take_own(edge_or_node_to_obs_or_fq)
        if trains:
            observers = _for_training(observers, frozenset(annotated.placement.weights))
            self._training = Trainee(wrap_for_training(model, observers, annotated.placement, annotated.hidden))
        else:
            reveal(model, annotated.hidden)
            others = composition.constants_of_others(edge_or_node_to_obs_or_fq)
            wrap_for_calibration(model, observers, annotated.placement, others)

    def step(self) -> None:
        """Takes one step of the milestones, and makes all ranks of a process group agree on every range.

        Call it once after every optimizer step. It steps the model that was prepared last.

        Raises:
            QuantizerError: No model was prepared by `prepare_qat_pt2e`, or it does not exist any more.
            CalibrationError: A range is not finite.
        """
        if self._training is None:
            raise QuantizerError(
                "step() has nothing to step: call prepare_qat_pt2e(exported_model, quantizer) with this quantizer "
                "first. Of several in a ComposableQuantizer, the first one steps for all."
            )
        self._training.step()

    def report(self, prepared: GraphModule) -> Report:
        """Returns how every operator of a prepared model is quantized, by which entry of the configuration, and why.

        Args:
            prepared: The graph that `prepare_pt2e` returned with this quantizer, or with one of the same configuration.

        Returns:
            A report with `to_text()`, `to_json()` and `to_dict()`.

        Raises:
            QuantizerError: `prepared` is not a prepared graph.
        """
        return make_report(prepared, self._policy)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_training": None}

    def __repr__(self) -> str:
        return f"CoreMLQuantizer({self.config!r})"


def _for_training(
    observers: Mapping[Place, torch.nn.Module], weights: Container[Place]
) -> dict[Place, torch.nn.Module]:
    """Returns the observers, with those of activations replaced by the ones for training; shared ones stay shared."""
    trained = {
        id(observer): observer.for_training() if isinstance(observer, RangeObserver) else observer
        for place, observer in observers.items()
        if place not in weights
    }
    return {place: trained.get(id(observer), observer) for place, observer in observers.items()}
