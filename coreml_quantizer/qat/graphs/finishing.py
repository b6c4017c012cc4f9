"""The conversion of everything in a trained graph other than its fake quantizers."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.export_utils import _EXPORTED_TRAINING_ATTR as MODE
from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase

from coreml_quantizer.graph.constant_folding import fold_constants
from coreml_quantizer.graph.lone_batch_norm import rewrite_lone_batch_norms
from coreml_quantizer.graph.values import constant_of
from coreml_quantizer.half.constants import round_constants_to_half
from coreml_quantizer.process.lifecycle import refuse_export
from coreml_quantizer.qat.graphs.unrounded import warn_of_unrounded
from coreml_quantizer.qat.layers.batch_norm import BatchNorm
from coreml_quantizer.qat.layers.deferred_activation import DeferredActivation
from coreml_quantizer.qat.layers.dropout import Dropout
from coreml_quantizer.qat.layers.mode_operator import Modal
from coreml_quantizer.qat.quantizers.base import FakeQuantizer
from coreml_quantizer.qat.quantizers.folded_weight import factor_of
from coreml_quantizer.rules import rules
from coreml_quantizer.weights.compressor import store

aten = torch.ops.aten

_BIAS_POSITION = 2


class Finisher(FakeQuantizeBase):
    """A module that does nothing in training; conversion reaches it last and lets it clean up the whole graph."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x`."""
        refuse_export()
        return x

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        """Refuses, because this module has no scale and no zero point.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError

    def convert(self, model: GraphModule, node: Node) -> None:
        """Folds batch norms, removes dropouts and modes, rounds constants to float16; torchao calls it."""
        warn_of_unrounded(module for module in model.modules() if isinstance(module, FakeQuantizer))
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        model.graph.erase_node(node)
        for call in list(model.graph.nodes):
            module = model.get_submodule(call.target) if call.op == "call_module" else None
            if isinstance(module, Dropout):
                call.replace_all_uses_with(call.args[0])
                model.graph.erase_node(call)
            elif isinstance(module, DeferredActivation | Modal):
                module.restore(call)
            elif isinstance(module, BatchNorm):
                _convert_batch_norm(model, call, module)
        _forget_mode(model)
        rewrite_lone_batch_norms(model)
        fold_constants(model)
        # Constants that conversion made, weights and grids, know no shapes and stay as they are.
        made = [
            (source, user)
            for user in model.graph.nodes
            if "val" not in user.meta
            for source in user.all_input_nodes
            if source.op == "get_attr"
        ]
        round_constants_to_half(model, made, rules)


def _forget_mode(model: GraphModule) -> None:
    for node in list(model.graph.nodes):
        if node.op == "get_attr" and node.target == MODE:
            model.graph.erase_node(node)
    delattr(model, MODE)


def _convert_batch_norm(model: GraphModule, node: Node, module: BatchNorm) -> None:
    layer = node.args[0]
    weight = layer.args[1] if isinstance(layer, Node) and len(layer.args) > 1 else None
    if isinstance(weight, Node) and "folded_weight" in weight.meta:
        _fold_bias(model, layer, node, module)
        return
    with model.graph.inserting_before(node):
        arguments = (*node.args[:5], node.args[3] is None, module.momentum, module.eps, False)
        result = model.graph.call_function(aten.batch_norm.default, arguments)
    result.meta = dict(node.meta)
    node.replace_all_uses_with(result)
    model.graph.erase_node(node)


def _fold_bias(model: GraphModule, layer: Any, node: Node, module: BatchNorm) -> None:
    """Replaces a batch norm by a bias of `layer`, whose weight already contains the factor of the batch norm."""
    norm_weight, norm_bias, mean, variance = (constant_of(model, source) for source in node.args[1:5])
    assert mean is not None
    assert variance is not None
    factor = factor_of(norm_weight, variance, module.eps)
    bias = constant_of(model, layer.args[_BIAS_POSITION] if len(layer.args) > _BIAS_POSITION else None)
    shift = (-mean if bias is None else bias - mean) * factor
    shift = shift if norm_bias is None else shift + norm_bias
    with model.graph.inserting_before(layer):
        folded = store(model, "_folded_bias", shift)
    folded.meta["val"] = layer.meta["val"].new_empty(shift.shape)
    layer.args = (*layer.args[:_BIAS_POSITION], folded, *layer.args[_BIAS_POSITION + 1 :])
    node.replace_all_uses_with(layer)
    model.graph.erase_node(node)
