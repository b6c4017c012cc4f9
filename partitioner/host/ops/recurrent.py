"""Recurrent layers: rnn, gru and lstm over inputs of shape (sequence, batch, features)."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

from partitioner.host.mil.model import Opset
from partitioner.host.registry import Tensors, register_op

_Activation = Callable[[torch.Tensor], torch.Tensor]


def _hard_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return torch.clamp(0.2 * x + 0.5, 0, 1)


_ACTIVATIONS: dict[str, _Activation] = {
    "hard_sigmoid": _hard_sigmoid,
    "linear": lambda x: x,
    "relu": torch.relu,
    "scaled_tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sigmoid_hard": _hard_sigmoid,
    "tanh": torch.tanh,
}
"""Activation -> its function, with Core ML's default constants: a recurrent layer cannot change them."""


@register_op("rnn")
def rnn(
    x: torch.Tensor,
    initial_h: torch.Tensor,
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    bias: torch.Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> Tensors:
    """Runs h = activation(W_ih x + W_hh h + b); returns the states (all or the last one) and the last state."""
    act = _ACTIVATIONS[activation]

    def step(projected: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return act(projected + F.linear(h, weight_hh))

    return _unroll(step, F.linear(_ordered(x, direction), weight_ih, bias), initial_h, output_sequence)


@register_op("gru")
def gru(
    x: torch.Tensor,
    initial_h: torch.Tensor,
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    bias: torch.Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
) -> Tensors:
    """Runs a gated recurrent unit with gates in the order reset, output, update; the reset gate scales the state."""
    gate, act = _ACTIVATIONS[recurrent_activation], _ACTIVATIONS[activation]
    w_r, w_o, w_z = weight_hh.chunk(3)

    def step(projected: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        x_r, x_o, x_z = projected.chunk(3, -1)
        r = gate(x_r + F.linear(h, w_r))
        z = gate(x_z + F.linear(h, w_z))
        return (1 - z) * act(x_o + F.linear(r * h, w_o)) + z * h

    return _unroll(step, F.linear(_ordered(x, direction), weight_ih, bias), initial_h, output_sequence)


@register_op("gru", since=Opset.IOS18)
def gru_with_reset_after(
    x: torch.Tensor,
    initial_h: torch.Tensor,
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    bias: torch.Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: torch.Tensor | None = None,
) -> Tensors:
    """Runs `gru`, or with the reset gate on the projected state; then ``bias`` belongs to that projection."""
    if not reset_after:
        both = bias if input_bias is None else input_bias if bias is None else bias + input_bias
        return gru(
            x, initial_h, weight_ih, weight_hh, both, direction, output_sequence, recurrent_activation, activation
        )
    gate, act = _ACTIVATIONS[recurrent_activation], _ACTIVATIONS[activation]

    def step(projected: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        x_r, x_o, x_z = projected.chunk(3, -1)
        h_r, h_o, h_z = F.linear(h, weight_hh, bias).chunk(3, -1)
        z = gate(x_z + h_z)
        return (1 - z) * act(x_o + gate(x_r + h_r) * h_o) + z * h

    return _unroll(step, F.linear(_ordered(x, direction), weight_ih, input_bias), initial_h, output_sequence)


@register_op("lstm")
def lstm(
    x: torch.Tensor,
    initial_h: torch.Tensor,
    initial_c: torch.Tensor,
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    bias: torch.Tensor | None = None,
    peephole: torch.Tensor | None = None,
    weight_ih_back: torch.Tensor | None = None,
    weight_hh_back: torch.Tensor | None = None,
    bias_back: torch.Tensor | None = None,
    peephole_back: torch.Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> Tensors:
    """Runs a long short-term memory with gates in the order input, forget, output, cell.

    Returns the states (all or the last one), the last state and the last cell. Both directions lie side by side in the
    last dimension; the backward one's states are in the order of the input.
    """
    acts = (_ACTIVATIONS[recurrent_activation], _ACTIVATIONS[cell_activation], _ACTIVATIONS[activation])
    # Rows beyond the batch are ignored: for packed sequences, Core ML Tools emits as many as the longest one has steps.
    initial_h, initial_c = initial_h[: x.shape[1]], initial_c[: x.shape[1]]
    if direction != "bidirectional":
        ordered = _ordered(x, direction)
        states, h, c = _lstm_pass(ordered, initial_h, initial_c, weight_ih, weight_hh, bias, peephole, acts, clip)
        return _collect(states, output_sequence), h, c
    if weight_ih_back is None or weight_hh_back is None:
        raise ValueError("a bidirectional lstm needs weight_ih_back and weight_hh_back")
    (h_f, h_b), (c_f, c_b) = initial_h.chunk(2, -1), initial_c.chunk(2, -1)
    states_f, h_f, c_f = _lstm_pass(x, h_f, c_f, weight_ih, weight_hh, bias, peephole, acts, clip)
    states_b, h_b, c_b = _lstm_pass(
        x.flip(0), h_b, c_b, weight_ih_back, weight_hh_back, bias_back, peephole_back, acts, clip
    )
    h, c = torch.cat((h_f, h_b), -1), torch.cat((c_f, c_b), -1)
    if not output_sequence:
        return h[None], h, c
    return torch.cat((torch.stack(states_f), torch.stack(states_b[::-1])), -1), h, c


def _lstm_pass(
    x: torch.Tensor,
    h: torch.Tensor,
    c: torch.Tensor,
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    bias: torch.Tensor | None,
    peephole: torch.Tensor | None,
    activations: tuple[_Activation, _Activation, _Activation],
    clip: float | None,
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    gate, cell, act = activations
    no_peephole = x.new_zeros(3, h.shape[-1])
    p_i, p_f, p_o = (no_peephole if peephole is None else peephole.reshape(3, -1)).unbind(0)
    states = []
    for projected in F.linear(x, weight_ih, bias).unbind(0):
        i, f, o, z = (projected + F.linear(h, weight_hh)).chunk(4, -1)
        c = gate(f + c * p_f) * c + gate(i + c * p_i) * cell(z)
        if clip is not None:
            c = c.clamp(-clip, clip)
        h = gate(o + c * p_o) * act(c)
        states.append(h)
    return states, h, c


def _unroll(
    step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], inputs: torch.Tensor, h: torch.Tensor, sequence: bool
) -> Tensors:
    """Returns the states that ``step(input, state)`` runs through (all or the last one), and the last state."""
    states = []
    for projected in inputs.unbind(0):
        h = step(projected, h)
        states.append(h)
    return _collect(states, sequence), h


def _ordered(x: torch.Tensor, direction: str) -> torch.Tensor:
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction {direction!r}: choose forward or reverse")
    return x.flip(0) if direction == "reverse" else x


def _collect(states: Iterable[torch.Tensor], output_sequence: bool) -> torch.Tensor:
    steps = list(states)
    return torch.stack(steps) if output_sequence else steps[-1][None]
