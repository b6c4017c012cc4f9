import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from helpers.mil import run

SEQUENCE, BATCH, INPUTS, HIDDEN = 4, 2, 3, 5
# The states stay below one; a few steps of dot products in single precision.
BOUND = 64 * np.finfo(np.float32).eps


def _case(module):
    torch.manual_seed(0)
    layer = module.double()
    x = torch.randn(SEQUENCE, BATCH, INPUTS, dtype=torch.float64)
    return layer, x, {name: value.detach().numpy().astype(np.float32) for name, value in layer.named_parameters()}


def _reordered(weight, order):
    parts = np.split(weight, len(order))
    return np.concatenate([parts[index] for index in order])


def _close(output, expected):
    expected = expected.detach().numpy()
    assert output.shape == expected.shape
    assert np.abs(output - expected).max() <= BOUND


def test_rnn_in_both_directions():
    layer, x, w = _case(torch.nn.RNN(INPUTS, HIDDEN, nonlinearity="relu"))
    h = torch.randn(BATCH, HIDDEN, dtype=torch.float64)
    shared = {"weight_ih": w["weight_ih_l0"], "weight_hh": w["weight_hh_l0"], "activation": "relu"}
    shared["bias"] = w["bias_ih_l0"] + w["bias_hh_l0"]

    def build(x, h):
        return [
            *mb.rnn(x=x, initial_h=h, output_sequence=True, **shared),
            *mb.rnn(x=x, initial_h=h, direction="reverse", **shared),
        ]

    outputs = run(build, {"x": x.numpy().astype(np.float32), "h": h.numpy().astype(np.float32)})
    forward, last = layer(x, h[None])
    backward, _ = layer(x.flip(0), h[None])
    for output, expected in zip(outputs, [forward, last[0], backward[-1:], backward[-1]], strict=True):
        _close(output, expected)


def _gru(x, h, w, reset_after):
    w_r, w_z, w_n = torch.from_numpy(w["weight_hh_l0"]).double().chunk(3)
    b_r, b_z, b_n = torch.from_numpy(w["bias_hh_l0"]).double().chunk(3)
    states = []
    for step in x:
        x_r, x_z, x_n = (
            step @ torch.from_numpy(w["weight_ih_l0"]).double().T + torch.from_numpy(w["bias_ih_l0"])
        ).chunk(3, -1)
        r, z = torch.sigmoid(x_r + h @ w_r.T + b_r), torch.sigmoid(x_z + h @ w_z.T + b_z)
        state = r * (h @ w_n.T + b_n) if reset_after else (r * h) @ w_n.T + b_n
        h = (1 - z) * torch.tanh(x_n + state) + z * h
        states.append(h)
    return torch.stack(states)


@pytest.mark.parametrize("reset_after", [False, True])
def test_gru_resets_before_or_after_the_projection(reset_after):
    layer, x, w = _case(torch.nn.GRU(INPUTS, HIDDEN))
    h = torch.randn(BATCH, HIDDEN, dtype=torch.float64)
    # torch orders the gates reset, update, new; MIL reset, new, update.
    ours = {name: _reordered(value, (0, 2, 1)) for name, value in w.items()}
    parameters = {"weight_ih": ours["weight_ih_l0"], "weight_hh": ours["weight_hh_l0"], "output_sequence": True}
    if reset_after:
        parameters |= {"bias": ours["bias_hh_l0"], "input_bias": ours["bias_ih_l0"], "reset_after": True}
    else:
        parameters |= {"bias": ours["bias_hh_l0"] + ours["bias_ih_l0"]}
    feed = {"x": x.numpy().astype(np.float32), "h": h.numpy().astype(np.float32)}
    states, last = run(lambda x, h: mb.gru(x=x, initial_h=h, **parameters), feed, ios=18)
    expected = _gru(x, h, w, reset_after)
    _close(states, expected)
    _close(last, expected[-1])
    if reset_after:
        _close(states, layer(x, h[None])[0])


@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("both", [True, False])
def test_lstm_agrees_with_torch(both, sequence):
    layer, x, w = _case(torch.nn.LSTM(INPUTS, HIDDEN, bidirectional=both))
    directions = 1 + both
    h, c = (torch.randn(directions, BATCH, HIDDEN, dtype=torch.float64) for _ in range(2))
    # torch orders the gates input, forget, cell, output; MIL input, forget, output, cell.
    ours = {name: _reordered(value, (0, 1, 3, 2)) for name, value in w.items()}

    def weights(torch_suffix, suffix):
        return {
            f"weight_ih{suffix}": ours[f"weight_ih_l0{torch_suffix}"],
            f"weight_hh{suffix}": ours[f"weight_hh_l0{torch_suffix}"],
            f"bias{suffix}": ours[f"bias_ih_l0{torch_suffix}"] + ours[f"bias_hh_l0{torch_suffix}"],
        }

    parameters = {**weights("", ""), **(weights("_reverse", "_back") if both else {})}
    direction = "bidirectional" if both else "forward"
    feed = {name: torch.cat(tuple(value), -1) for name, value in (("h", h), ("c", c))} | {"x": x}

    def build(h, c, x):
        return mb.lstm(x=x, initial_h=h, initial_c=c, direction=direction, output_sequence=sequence, **parameters)

    outputs = run(build, {name: value.numpy().astype(np.float32) for name, value in feed.items()})
    states, (last_h, last_c) = layer(x, (h, c))
    flat_h = torch.cat(tuple(last_h), -1)
    for output, expected in zip(
        outputs, [states if sequence else flat_h[None], flat_h, torch.cat(tuple(last_c), -1)], strict=True
    ):
        _close(output, expected)


def test_lstm_with_peepholes_and_a_clipped_cell():
    generator = np.random.default_rng(0)
    shapes = {"weight_ih": (4 * HIDDEN, INPUTS), "weight_hh": (4 * HIDDEN, HIDDEN), "bias": (4 * HIDDEN,)}
    shapes["peephole"] = (3 * HIDDEN,)
    w = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    x = generator.standard_normal((SEQUENCE, BATCH, INPUTS)).astype(np.float32)
    zero = np.zeros((BATCH, HIDDEN), np.float32)
    _, last_h, last_c = run(
        lambda x, h, c: mb.lstm(x=x, initial_h=h, initial_c=c, clip=0.25, **w), {"x": x, "h": zero, "c": zero}
    )
    wide = {name: value.astype(np.float64) for name, value in w.items()}
    p_i, p_f, p_o = np.split(wide["peephole"], 3)
    h, c = zero.astype(np.float64), zero.astype(np.float64)
    sigmoid = lambda value: 1 / (1 + np.exp(-value))  # noqa: E731
    for step in x:
        gates = step @ wide["weight_ih"].T + h @ wide["weight_hh"].T + wide["bias"]
        i, f, o, z = np.split(gates, 4, -1)
        c = np.clip(sigmoid(f + c * p_f) * c + sigmoid(i + c * p_i) * np.tanh(z), -0.25, 0.25)
        h = sigmoid(o + c * p_o) * np.tanh(c)
    _close(last_h, torch.from_numpy(h))
    _close(last_c, torch.from_numpy(c))
    assert np.abs(last_c).max() == 0.25


def test_initial_states_beyond_the_batch_are_ignored():
    layer, x, w = _case(torch.nn.LSTM(INPUTS, HIDDEN))
    ours = {name: _reordered(value, (0, 1, 3, 2)) for name, value in w.items()}
    parameters = {"weight_ih": ours["weight_ih_l0"], "weight_hh": ours["weight_hh_l0"]}
    parameters["bias"] = ours["bias_ih_l0"] + ours["bias_hh_l0"]

    def build(x, rows):
        zeros = mb.fill(shape=mb.concat(values=[rows, np.array([HIDDEN], np.int32)], axis=0), value=np.float32(0))
        return mb.lstm(x=x, initial_h=zeros, initial_c=zeros, output_sequence=True, **parameters)

    feed = {"x": x.numpy().astype(np.float32), "rows": np.array([SEQUENCE + BATCH], np.int32)}
    states, last_h, _ = run(build, feed)
    expected, (expected_h, _) = layer(x)
    _close(states, expected)
    _close(last_h, expected_h[0])
