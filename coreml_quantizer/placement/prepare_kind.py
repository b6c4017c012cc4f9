"""The recognition of training: `prepare_qat_pt2e`, which torchao does not report, and graphs in training mode."""

import warnings
from collections.abc import Iterable

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.fake_quantize import FixedQParamsFakeQuantize
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from coreml_quantizer.errors import QuantizerError, QuantizerWarning
from coreml_quantizer.estimators import RangeObserver
from coreml_quantizer.graph.modes import trains
from coreml_quantizer.graph.nodes import module_stack
from coreml_quantizer.placement.places import Annotation
from coreml_quantizer.placement.sharing import Place
from coreml_quantizer.placement.torchao_specs import FixedParameters
from coreml_quantizer.specs import Training

_PROBE = FixedParameters(
    dtype=torch.uint8, scale=1.0, zero_point=0, quant_min=0, quant_max=255, qscheme=torch.per_tensor_affine
)
"""A spec for which torchao makes a fake quantizer in training, and an observer otherwise."""


_COUNTER = "num_batches_tracked"


def refuse_training_mode(model: GraphModule) -> None:
    """Refuses a model that was exported in training mode.

    Raises:
        QuantizerError: An operator is in training mode; the message lists the modules.
    """
    training = sorted({_module_of(node) for node in model.graph.nodes if _is_training(node)})
    if training:
        raise QuantizerError(
            f"The model was exported in training mode: {', '.join(training)}. Call model.eval() before "
            "torch.export.export; what is calibrated must be what the device runs. (Functions have to be told: a "
            "dropout by training=self.training, attention by dropout_p=0.0 in evaluation.)"
        )


def _is_training(node: Node) -> bool:
    if trains(node):
        return True
    counter = node.args[0] if node.op == "call_function" and node.args else None
    writes = node.target is torch.ops.aten.add_.Tensor and isinstance(counter, Node) and counter.op == "get_attr"
    return writes and str(getattr(counter, "target", "")).endswith(_COUNTER)


def _module_of(node: Node) -> str:
    stack = module_stack(node)
    return repr(stack[-1][0]) if stack and stack[-1][0] else f"the node {node.name}"


def plant(model: GraphModule) -> None:
    """Annotates `model` with `_PROBE` on the value of the output node, which nothing reads.

    Tools that look for the readers of annotated values therefore find nothing to quantize.
    """
    output = model.graph.output_node()
    if Q_ANNOTATION_KEY not in output.meta:
        output.meta[Q_ANNOTATION_KEY] = Annotation(output_qspec=_PROBE, allow_implicit_sharing=False)


def detect(model: GraphModule, observers: dict[Place, torch.nn.Module]) -> bool:
    """Removes the annotation that `plant` added, and returns whether torchao is preparing for training."""
    output = model.graph.output_node()
    del output.meta[Q_ANNOTATION_KEY]
    return isinstance(observers.pop(output), FixedQParamsFakeQuantize)


def warn_of_settings(observers: Iterable[torch.nn.Module]) -> None:
    """Warns when the configuration has settings that only training uses."""
    asked = {observer.spec.training for observer in observers if isinstance(observer, RangeObserver)} - {Training()}
    if asked:
        warnings.warn(
            "milestones and algorithm='learnable' steer quantization-aware training; prepare_pt2e, which calibrates, "
            "ignores them. Use prepare_qat_pt2e to train.",
            QuantizerWarning,
            stacklevel=2,
        )
