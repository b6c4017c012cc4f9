import numpy as np
import torch
import torch.nn.functional as F
from coremltools.converters.mil.mil import Builder as mb
from helpers.mil import run

EPSILON = np.finfo(np.float32).eps


def _random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _close(output, expected, bound):
    expected = expected.numpy() if isinstance(expected, torch.Tensor) else expected
    assert output.shape == expected.shape
    assert float(np.abs(output - expected).max()) <= bound


def test_matrix_products():
    x, y, z = _random(2, 3, 4, 8), _random(3, 8, 5, seed=1), _random(2, 8, 4, 5, seed=4)
    weight, bias = _random(6, 8, seed=2), _random(6, seed=3)

    def build(x, y, z):
        return [
            mb.linear(x=x, weight=weight, bias=bias),
            mb.matmul(x=x, y=y),
            mb.matmul(x=mb.transpose(x=x, perm=[0, 1, 3, 2]), y=y, transpose_x=True),
            mb.matmul(x=x, y=mb.transpose(x=y, perm=[0, 2, 1]), transpose_y=True),
            mb.einsum(values=(x, z), equation="abcd,adce->abce"),
        ]

    outputs = run(build, {"x": x, "y": y, "z": z})
    a, b = x.astype(np.float64), y.astype(np.float64)
    bound = 9 * EPSILON * float((np.abs(a) @ np.abs(b)).max())
    _close(outputs[0], a @ weight.T.astype(np.float64) + bias, bound + 9 * EPSILON * 30)
    for output in outputs[1:4]:
        _close(output, a @ b, bound)
    _close(outputs[4], np.einsum("abcd,adce->abce", a, z.astype(np.float64)), 4 * bound)


def test_attention_with_both_kinds_of_mask():
    q, k, v = _random(1, 2, 3, 4), _random(1, 2, 5, 4, seed=1), _random(1, 2, 5, 6, seed=2)
    allowed = np.tril(np.ones((3, 5), bool))
    bias = _random(3, 5, seed=3)

    def build(q, k, v):
        return [
            mb.scaled_dot_product_attention(query=q, key=k, value=v),
            mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=allowed),
            mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=bias),
        ]

    outputs = run(build, {"q": q, "k": k, "v": v}, ios=18)
    scores = torch.from_numpy(q).double() @ torch.from_numpy(k).double().mT / 2
    masks = [torch.zeros(3, 5), torch.from_numpy(np.where(allowed, 0, -np.inf)), torch.from_numpy(bias)]
    for output, mask in zip(outputs, masks, strict=True):
        _close(output, torch.softmax(scores + mask, -1) @ torch.from_numpy(v).double(), 64 * EPSILON)


def test_normalizations():
    x = _random(2, 4, 3, 5)
    gamma, beta = _random(4, seed=1), _random(4, seed=2)
    mean, variance = _random(4, seed=3), np.abs(_random(4, seed=4)) + 0.5
    last = _random(3, 5, seed=5)

    def build(x):
        return [
            mb.batch_norm(x=x, mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=1e-3),
            mb.instance_norm(x=x, gamma=gamma, beta=beta, epsilon=1e-3),
            mb.layer_norm(x=x, axes=[2, 3], gamma=last, beta=last, epsilon=1e-3),
            mb.layer_norm(x=x, axes=[1], gamma=gamma, beta=beta, epsilon=1e-3),
            mb.l2_norm(x=x, epsilon=1e-3),
            mb.local_response_norm(x=x, size=3, alpha=0.5, beta=0.75, k=2.0),
        ]

    outputs = run(build, {"x": x})
    t = torch.from_numpy(x).double()
    g, b, m, v, w = (torch.from_numpy(value).double() for value in (gamma, beta, mean, variance, last))
    channels = F.layer_norm(t.movedim(1, -1), (4,), g, b, 1e-3).movedim(-1, 1)
    expected = [
        F.batch_norm(t, m, v, g, b, eps=1e-3),
        F.instance_norm(t, weight=g, bias=b, eps=1e-3),
        F.layer_norm(t, (3, 5), w, w, 1e-3),
        channels,
        t / torch.sqrt(t.square().sum((1, 2, 3), keepdim=True) + 1e-3),
        F.local_response_norm(t, 3, 0.5, 0.75, 2.0),
    ]
    for output, reference in zip(outputs, expected, strict=True):
        _close(output, reference, 64 * EPSILON * max(1.0, float(reference.abs().max())))


def test_reductions_over_some_and_all_axes():
    x = np.abs(_random(2, 3, 4)) + 0.1
    names = ("l1_norm", "l2_norm", "log_sum", "log_sum_exp", "max", "mean", "min", "prod", "sum", "sum_square")
    references = {
        "l1_norm": lambda a, **k: np.abs(a).sum(**k),
        "l2_norm": lambda a, **k: np.sqrt(np.square(a).sum(**k)),
        "log_sum": lambda a, **k: np.log(a.sum(**k)),
        "log_sum_exp": lambda a, **k: np.log(np.exp(a).sum(**k)),
        "sum_square": lambda a, **k: np.square(a).sum(**k),
    }

    def build(x):
        operations = [getattr(mb, f"reduce_{name}") for name in names]
        return [
            *(operation(x=x, axes=[0, -1], keep_dims=True) for operation in operations),
            *(operation(x=x, axes=[1]) for operation in operations),
            *(operation(x=x, keep_dims=True) for operation in operations),
        ]

    outputs = iter(run(build, {"x": x}))
    for axis, keep in (((0, 2), True), (1, False), (None, True)):
        for name in names:
            function = references.get(name) or (lambda a, name=name, **k: getattr(np, name)(a, **k))
            reference = function(x.astype(np.float64), axis=axis, keepdims=keep)
            _close(next(outputs), reference, 32 * EPSILON * max(1.0, float(np.abs(reference).max())))


def test_positions_of_extremes():
    x = _random(3, 5)
    build = lambda x: [mb.reduce_argmax(x=x, axis=1), mb.reduce_argmin(x=x, axis=0, keep_dims=True)]  # noqa: E731
    largest, smallest = run(build, {"x": x})
    np.testing.assert_array_equal(largest, x.argmax(1))
    np.testing.assert_array_equal(smallest, x.argmin(0, keepdims=True))
    assert largest.dtype == np.int32
