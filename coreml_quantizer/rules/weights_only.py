"""Rules for operators whose weights alone are quantized: embedding tables and recurrent layers."""

from collections.abc import Mapping

import torch
from torch.fx import Node

from coreml_quantizer.rules.registry import OpRule, Position, Treatment, WeightRole

aten = torch.ops.aten

_PARAMETERS = 2


def _matrices(node: Node) -> Mapping[Position, int]:
    """Returns the matrices among the parameters of lstm(input, states, parameters, ...); the others are biases."""
    parameters = node.args[_PARAMETERS]
    listed = parameters if isinstance(parameters, list | tuple) else ()
    return {
        (_PARAMETERS, index): 0
        for index, found in enumerate(listed)
        if isinstance(found, Node) and found.meta["val"].ndim > 1
    }


def _cell_matrices(node: Node) -> Mapping[Position, int]:
    """Returns the matrices of lstm_cell(input, states, w_ih, w_hh, ...)."""
    return {_PARAMETERS: 0, _PARAMETERS + 1: 0}


def _takes_a_tensor(node: Node) -> bool:
    overload = getattr(node.target, "_overloadname", "")
    return bool(overload == "input")


RULES = (
    OpRule(
        aten.embedding,
        Treatment.QUANTIZED,
        inputs=(),
        weight=WeightRole(0),
        weights_only=True,
        reason="its rows are stored in eight bits, each with its own scale; what it looks up stays float",
        source="coremltools' LinearQuantizer, embedding weights",
    ),
    OpRule(
        aten.embedding_bag,
        Treatment.FLOAT,
        reason="ExecuTorch runs it outside of Core ML, where all rows would be dequantized at every call; write it as "
        "an embedding and a sum",
        source="Core ML has no such operator, nor has Core ML Tools a conversion",
    ),
    *(
        OpRule(
            op,
            Treatment.QUANTIZED,
            inputs=(),
            weights_of=_matrices,
            weights_only=True,
            applies=_takes_a_tensor,
            otherwise="packed sequences have no form in Core ML",
            reason="its matrices are stored in eight bits; its gates would lose accuracy at every step of a sequence",
            source="coremltools' LinearQuantizer, weights of lstm; Core ML's lstm and gru compute in float16",
        )
        for op in (aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)
    ),
    *(
        OpRule(
            op,
            Treatment.QUANTIZED,
            inputs=(),
            weights_of=_cell_matrices,
            weights_only=True,
            reason="one step of a recurrent layer: its matrices are stored in eight bits, its gates stay float",
            source="as lstm and gru",
        )
        for op in (aten.lstm_cell, aten.gru_cell)
    ),
)
